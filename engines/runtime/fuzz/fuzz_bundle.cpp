// libFuzzer: a bundle whose graphs have other bytes than when they were built is refused, or answers. Bundles
// are opened without digests, which would find every change before anything is read. The bundle is
// NVLM_FUZZ_BUNDLE's, of which a copy is changed.
//
// An input names a graph, and places in it with their new bytes.

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "input.hpp"
#include "nvlm/nvlm.h"

namespace {

namespace fs = std::filesystem;

constexpr std::size_t max_changes = 16;
const char* const graphs[] = {"vision/vision.onnx", "llm/decoder.onnx", "llm/tiles.onnx"};

// A copy of the bundle, taken away at the end.
class Copy {
  public:
    Copy() {
        const char* const bundle = std::getenv("NVLM_FUZZ_BUNDLE");
        nvlm::fuzz::require(bundle != nullptr);
        std::string name = (fs::temp_directory_path() / "fuzz-bundle-XXXXXX").string();
        nvlm::fuzz::require(mkdtemp(name.data()) != nullptr);
        path_ = name;
        fs::copy(bundle, path_, fs::copy_options::recursive | fs::copy_options::overwrite_existing);
    }
    Copy(const Copy&) = delete;
    Copy& operator=(const Copy&) = delete;
    ~Copy() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }

    const fs::path& path() const { return path_; }

  private:
    fs::path path_;
};

std::vector<char> read(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void write(const fs::path& path, const std::vector<char>& bytes) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

void try_bundle(const std::string& path) {
    nvlm_engine_options options = {};
    options.struct_size = sizeof options;
    options.skip_digests = 1;
    options.threads = 1;
    nvlm_engine* engine = nullptr;
    if (nvlm_engine_open(path.c_str(), &options, &engine) != NVLM_OK) {
        nvlm::fuzz::require(engine == nullptr && *nvlm_last_error() != '\0');
        return;
    }
    static const std::vector<std::uint8_t> pixels(64 * 24 * 3, 77);
    nvlm_image image = {};
    image.struct_size = sizeof image;
    image.pixels = pixels.data();
    image.width = 64;
    image.height = 24;
    nvlm_request request = {};
    request.struct_size = sizeof request;
    request.prompt = "What?";
    request.images = &image;
    request.image_count = 1;
    request.max_new_tokens = 2;
    nvlm_result* result = nullptr;
    const nvlm_status status = nvlm_generate(engine, &request, &result);
    nvlm::fuzz::require((status == NVLM_OK) == (result != nullptr));
    nvlm_result_free(result);
    nvlm_engine_close(engine);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const Copy copy;
    nvlm::fuzz::Input input(data, size);
    const fs::path graph = copy.path() / graphs[input.below(std::size(graphs))];
    const std::vector<char> original = read(graph);
    std::vector<char> changed = original;
    for (std::size_t i = 0; i < max_changes && !input.empty(); ++i) {
        const auto place = input.number<std::uint32_t>();
        changed[place % changed.size()] = input.number<char>();
    }
    write(graph, changed);
    try_bundle(copy.path().string());
    write(graph, original);
    return 0;
}
