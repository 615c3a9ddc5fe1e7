// What the harnesses share: settings taken from the input, bases that are nearly always sensible, and a check that aborts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#define REQUIRE(condition)                                                             \
    do {                                                                               \
        if (!(condition)) {                                                            \
            std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            std::abort();                                                              \
        }                                                                              \
    } while (false)

// The input, read from the front; zeros behind its end.
class Input {
public:
    Input(const uint8_t *data, size_t size) : at_(data), end_(data + size) {}

    bool empty() const { return at_ == end_; }
    uint8_t byte() { return at_ < end_ ? *at_++ : uint8_t{0}; }
    int64_t below(int64_t limit) { return (byte() << 8 | byte()) % limit; }
    uint64_t word() {
        uint64_t value = 0;
        for (int i = 0; i < 8; ++i) value = value << 8 | byte();
        return value;
    }
    // True for one input in `times`, by all of its bytes: offspring of a dear input are not dear themselves.
    bool rarely(uint64_t times) const {
        uint64_t hash = 14695981039346656037ULL;
        for (const uint8_t *at = at_; at < end_; ++at) hash = (hash ^ *at) * 1099511628211ULL;
        return (hash >> 32) % times == 0;
    }
    double share() { return static_cast<double>(byte()) / 255; }
    std::vector<uint8_t> rest() {
        std::vector<uint8_t> bytes(at_, end_);
        at_ = end_;
        return bytes;
    }

    // The rest as text over `alphabet`, so that mutations stay near what the parser accepts: a byte is a letter, and one
    // of 232 and above repeats the letter after it. An empty alphabet: the bytes as they are.
    std::string text(const std::string &alphabet, size_t most) {
        std::string out;
        while (!empty() && out.size() < most) {
            size_t times = 1;
            uint8_t value = byte();
            if (alphabet.empty()) {
                out.push_back(static_cast<char>(value));
                continue;
            }
            if (value >= 232) {
                times = size_t{1} << (value - 232) / 2;
                times = std::min((value & 1) ? times + 3 : times, most - out.size());
                value = byte();
            }
            out.append(times, alphabet[value % alphabet.size()]);
        }
        return out;
    }

private:
    const uint8_t *at_, *end_;
};

// A copy with nothing behind it, so that the address sanitizer sees every byte read too far.
class Exact {
public:
    template <typename Bytes>
    explicit Exact(const Bytes &bytes) : size_(static_cast<int64_t>(bytes.size())), data_(new uint8_t[bytes.size()]) {
        for (size_t i = 0; i < bytes.size(); ++i) data_[i] = static_cast<uint8_t>(bytes[i]);
    }
    const uint8_t *data() const { return data_.get(); }
    int64_t size() const { return size_; }

private:
    int64_t size_;
    std::unique_ptr<uint8_t[]> data_;
};

// What a strand reads: letters across, from the other end; bytes that are no base stay what they are.
inline std::string strand(const std::string &bases, bool reverse) {
    if (!reverse) return bases;
    const std::string from = "ACGTUacgtu", to = "TGCAAtgcaa";
    std::string out(bases.rbegin(), bases.rend());
    for (char &base : out)
        if (const size_t place = from.find(base); place != std::string::npos) base = to[place];
    return out;
}

inline bool is_lower(char byte) { return byte >= 'a' && byte <= 'z'; }
inline char upper(char byte) { return is_lower(byte) ? static_cast<char>(byte - 32) : byte; }
