// libFuzzer: any bytes as an image file are refused with a sentence, or become tiles that all kernels agree
// on.

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "error.hpp"
#include "image/decode.hpp"
#include "image/kernels.hpp"
#include "image/tiles.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        const nvlm::Image image = nvlm::decode_image({data, size}, "fuzz");
        // Larger ones decode by the same code, and would only take the fuzzer's time.
        if (std::int64_t{image.width()} * image.height() > 65536) return 0;
        const nvlm::TileRule rule{28, 1, 6};
        const nvlm::TiledImage tiles = nvlm::tile_image(image, rule);
        if (tiles.pixels != nvlm::tile_image(image, rule, nvlm::scalar::kernels).pixels) std::abort();
    } catch (const nvlm::Error&) {
        // No image.
    }
    return 0;
}
