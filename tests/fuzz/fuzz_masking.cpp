// Masking: place by place, what is chosen and what it reads, from the rule in dnacore.h.
#include <cmath>
#include <stdexcept>

#include "dnacore.h"
#include "fuzz.h"

using namespace dnacore;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input input(data, size);
    const auto share = [&input] {
        const uint8_t kind = input.byte();
        if (kind < 32) return 0.0;
        if (kind < 64) return 1.0;
        if (kind == 64) return std::nan("");
        if (kind == 65) return -0.25;
        return static_cast<double>(input.byte()) / (kind < 72 ? 128 : 255);
    };
    const double chosen = share(), masked = share(), random = share();
    const int64_t mask_id = input.byte(), first = input.byte();
    const int64_t num_standard = input.byte() & 1 ? input.byte() : static_cast<int64_t>(input.word() >> 30) - 4;
    const uint64_t key = input.word();
    const auto is_share = [](double value) { return value >= 0 && value <= 1; };
    const bool holds = is_share(chosen) && is_share(masked) && is_share(random) && masked + random <= 1 && num_standard >= 1 &&
                       num_standard < int64_t{1} << 31;
    // Over the border of a block (1024 places) now and then.
    const uint8_t length_kind = input.byte();
    const int64_t count = length_kind < 64 ? 1000 + input.byte() : length_kind < 72 ? input.below(5000) : input.byte();
    const std::vector<uint8_t> rest = input.rest();
    try {
        const Masking masking(chosen, masked, random, mask_id, first, num_standard);
        REQUIRE(holds);
        const std::unique_ptr<int64_t[]> tokens(new int64_t[static_cast<size_t>(count)]);
        const std::unique_ptr<float[]> weights(new float[static_cast<size_t>(count)]);
        std::vector<int64_t> old_tokens;
        std::vector<float> old_weights;
        for (int64_t i = 0; i < count; ++i) {
            const uint8_t byte = rest.empty() ? 200 : rest[static_cast<size_t>(i) % rest.size()];
            old_tokens.push_back(tokens[i] = 1000 + byte);
            old_weights.push_back(weights[i] = byte < 64 ? 0 : static_cast<float>(byte) / 255);
        }
        masking.apply(key, count, tokens.get(), weights.get());
        for (int64_t i = 0; i < count; ++i) {
            const auto at = static_cast<size_t>(i);
            const uint64_t hash = mix64(key + static_cast<uint64_t>(i + 1) * kGolden), second = mix64(hash + kGolden);
            // 53 and 32 bits as shares of 1: exact in a double.
            const bool is_chosen = std::ldexp(static_cast<double>(hash >> 11), -53) < std::floor(std::ldexp(chosen, 53)) * std::ldexp(1.0, -53);
            const double draw = static_cast<double>(second >> 32);
            int64_t token = old_tokens[at];
            if (is_chosen && old_weights[at] > 0) {
                if (draw < std::round(std::ldexp(masked, 32))) token = mask_id;
                else if (draw < std::round(std::ldexp(masked + random, 32))) {
                    token = first + static_cast<int64_t>(((second & 0xffffffff) * static_cast<uint64_t>(num_standard)) >> 32);
                    REQUIRE(token >= first && token < first + num_standard);
                }
            }
            REQUIRE(tokens[i] == token);
            REQUIRE(weights[i] == (is_chosen ? old_weights[at] : 0.0F));
        }
    } catch (const std::invalid_argument &) {
        REQUIRE(!holds);
    }
    return 0;
}
