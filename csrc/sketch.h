// Sketches of k-mers: which pieces of sequence hold the same bases, on either strand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace dnacore {

constexpr int64_t kMinSketchK = 11, kMaxSketchK = 31;

// Which k-mers are kept. A k-mer and its reverse complement are one; its hash alone says whether it is kept, so two sequences
// that share a k-mer both keep it or both do not (FracMinHash; Irber et al. 2022): one of `scale`, on average.
class Sketcher {
public:
    // Throws std::invalid_argument for k outside [kMinSketchK, kMaxSketchK] and a scale below 1.
    Sketcher(int64_t k, int64_t scale);
    // Adds the distinct kept hashes, in order, of the k-mers of `bases` that begin in [start, end) and end at or before `limit`.
    // Case is ignored; a k-mer with a letter other than A, C, G or T is none.
    void add(const uint8_t *bases, int64_t start, int64_t end, int64_t limit, std::vector<uint64_t> &out) const;

private:
    int64_t k_;
    uint64_t largest_;  // hash that is kept
};

// What became of a piece that was offered.
struct Offer {
    int64_t shared;  // its hashes that were held before
    int64_t holder;  // the piece that holds the most of them; -1: the piece was taken in
};

// Sketches taken in one after another, each only if it is new: an open hash table, 12 bytes per slot, at most 7 of 10 full.
class KeptSketches {
public:
    // Left out is a piece with at least `min_hashes` hashes, of which at least the share `near` is held. Throws
    // std::invalid_argument for a share outside (0, 1] and min_hashes below 1.
    KeptSketches(double near, int64_t min_hashes);
    // The next piece, by its distinct hashes. Throws std::invalid_argument after 2^31 - 1 pieces.
    Offer offer(const uint64_t *hashes, int64_t count);
    int64_t num_hashes() const { return num_hashes_; }  // held

private:
    size_t slot_of(uint64_t hash) const;
    void grow();

    double near_;
    int64_t min_hashes_, num_pieces_ = 0, num_hashes_ = 0;
    std::vector<uint64_t> hash_;
    std::vector<int32_t> holder_;  // -1: empty
    std::vector<int32_t> found_;   // holders of the hashes of one piece
};

}  // namespace dnacore
