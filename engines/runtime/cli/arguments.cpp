#include "arguments.hpp"

#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>

const char* const help_text =
    R"(Usage: nvlm-cli BUNDLE --prompt TEXT [OPTIONS]

  Answer a prompt, about images if there are any.

  The answer goes to stdout; the times of the stages go to stderr.

Options:
  --prompt TEXT         <image> marks an image's place in it.
  --image FILE          A JPEG or PNG file; may be given again.
  --max-new-tokens N    [default: 1024]
  --stop TEXT           End the answer before this text; may be given again.
  --temperature X       0: always the best token.  [default: 0]
  --top-k K             Sample from the K best tokens.
  --top-p P             Sample from the best tokens of mass P.
  --seed N              [default: 0]
  --top-logits K        Give the logits of the K likeliest first tokens in the JSON.
  --device DEVICE       [default: cpu]
  --threads N           Default: all cores.
  --memory fast|mapped  mapped: leave the weights in the file, for models larger than memory.
  --library FILE        The backend's library; default: NVLM_ONNXRUNTIME_LIBRARY, or the system's.
  --require-verified    Refuse an engine that nvlm-build verify has not passed.
  --stream              Print the answer while it is made.
  --json                Print JSON.
  --version             Print the version.
  -h, --help            Show this text.
)";

namespace {

[[noreturn]] void refuse(const std::string& message) {
    throw nvlm::Failure(NVLM_USAGE, message, "nvlm-cli --help");
}

std::int64_t integer(const std::string& option, const std::string& text, std::int64_t minimum,
                     std::int64_t maximum = std::numeric_limits<std::int64_t>::max()) {
    char* end = nullptr;
    errno = 0;
    const long long value = std::strtoll(text.c_str(), &end, 10);
    if (text.empty() || *end != '\0' || errno != 0 || value < minimum || value > maximum) {
        refuse("Invalid value for '" + option + "': '" + text + "' is no integer of at least " +
               std::to_string(minimum));
    }
    return value;
}

double number(const std::string& option, const std::string& text) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0' || !std::isfinite(value)) {
        refuse("Invalid value for '" + option + "': '" + text + "' is no number");
    }
    return value;
}

using Setter = std::function<void(Arguments&, const std::string& option, const std::string& value)>;

const std::map<std::string, Setter>& settings() {
    constexpr auto max_threads = std::numeric_limits<std::int32_t>::max();
    static const std::map<std::string, Setter> all = {
        {"--prompt", [](auto& a, auto&, auto& v) { a.request.prompt = v; }},
        {"--image", [](auto& a, auto&, auto& v) { a.request.add_image(v); }},
        {"--max-new-tokens",
         [](auto& a, auto& o, auto& v) {
             a.request.max_new_tokens = static_cast<std::size_t>(integer(o, v, 1));
         }},
        {"--stop", [](auto& a, auto&, auto& v) { a.request.stop.push_back(v); }},
        {"--temperature", [](auto& a, auto& o, auto& v) { a.request.temperature = number(o, v); }},
        {"--top-k", [](auto& a, auto& o, auto& v) { a.request.top_k = integer(o, v, 0); }},
        {"--top-p",
         [](auto& a, auto& o, auto& v) {
             a.request.top_p = number(o, v);
             // In the C interface 0 stands for the default.
             if (a.request.top_p == 0.0) refuse("top_p is 0; it must lie above 0 and at most at 1");
         }},
        {"--seed",
         [](auto& a, auto& o, auto& v) { a.request.seed = static_cast<std::uint64_t>(integer(o, v, 0)); }},
        {"--top-logits", [](auto& a, auto& o,
                            auto& v) { a.request.top_logits = static_cast<std::size_t>(integer(o, v, 0)); }},
        {"--device", [](auto& a, auto&, auto& v) { a.options.device = v; }},
        {"--threads", [](auto& a, auto& o,
                         auto& v) { a.options.threads = static_cast<int>(integer(o, v, 1, max_threads)); }},
        {"--memory",
         [](auto& a, auto& o, auto& v) {
             if (v != "fast" && v != "mapped") {
                 refuse("Invalid value for '" + o + "': '" + v + "' is neither fast nor mapped");
             }
             a.options.mapped = v == "mapped";
         }},
        {"--library", [](auto& a, auto&, auto& v) { a.options.library = v; }},
    };
    return all;
}

bool set_flag(Arguments& arguments, const std::string& word) {
    if (word == "--require-verified") return arguments.options.require_verified = true;
    if (word == "--stream") return arguments.stream = true;
    if (word == "--json") return arguments.as_json = true;
    if (word == "--version") return arguments.version = true;
    if (word == "-h" || word == "--help") return arguments.help = true;
    return false;
}

}  // namespace

Arguments parse_arguments(const std::vector<std::string>& words) {
    Arguments arguments;
    bool has_prompt = false;
    for (std::size_t i = 0; i < words.size(); ++i) {
        if (set_flag(arguments, words[i])) continue;
        if (words[i].rfind('-', 0) != 0) {
            if (!arguments.bundle.empty()) refuse("Got unexpected extra argument (" + words[i] + ")");
            arguments.bundle = words[i];
            continue;
        }
        const std::size_t equals = words[i].find('=');
        const std::string option = words[i].substr(0, equals);
        const auto found = settings().find(option);
        if (found == settings().end()) refuse("No such option: " + option);
        if (equals == std::string::npos && i + 1 == words.size()) {
            refuse("Option '" + option + "' requires an argument");
        }
        found->second(arguments, option,
                      equals == std::string::npos ? words[++i] : words[i].substr(equals + 1));
        has_prompt = has_prompt || option == "--prompt";
    }
    if (arguments.help || arguments.version) return arguments;
    if (arguments.bundle.empty()) refuse("Missing argument 'BUNDLE'");
    if (!has_prompt) refuse("Missing option '--prompt'");
    if (arguments.stream && arguments.as_json) {
        throw nvlm::Failure(NVLM_USAGE, "--stream and --json exclude each other",
                            "the JSON has the whole answer");
    }
    return arguments;
}
