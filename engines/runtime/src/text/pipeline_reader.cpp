#include "text/pipeline_reader.hpp"

#include <utility>

#include "text/tokenizer_error.hpp"

namespace nvlm {
namespace {

constexpr std::string_view qwen2_pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

}  // namespace

// With the library's defaults.
struct PipelineReader::Step {
    std::string type;
    std::string pattern;
    std::string behavior;
    bool invert = false;
    bool add_prefix_space = true;
    bool use_regex = true;
};

bool PipelineReader::read(std::string_view key) {
    if (key == "normalizer") {
        read_normalizer();
    } else if (key == "pre_tokenizer") {
        read_pre_tokenizer();
    } else if (key == "decoder") {
        read_decoder();
    } else {
        return false;
    }
    return true;
}

void PipelineReader::check_complete() const {
    if (!has_steps_) refuse("there is no 'pre_tokenizer'; only byte-level BPE is supported");
    if (!has_decoder_) refuse("there is no 'decoder'; only ByteLevel is supported");
}

void PipelineReader::refuse(const std::string& what) const {
    refuse_tokenizer(source_, what);
}

void PipelineReader::read_normalizer() {
    if (reader_.null()) return;
    std::string type;
    bool simple = true;
    reader_.object([this, &type, &simple](std::string_view key) {
        if (key == "type") {
            type = reader_.string();
        } else if (key == "normalizers") {
            reader_.array([this] { read_normalizer(); });
            simple = false;
        } else {
            reader_.skip();
        }
    });
    if (type == "NFC") {
        nfc_ = true;
    } else if (type != "Sequence" || simple) {
        refuse("the normalizer '" + type + "' is not supported; only NFC is");
    }
}

void PipelineReader::add_steps(std::vector<Step>& steps) {
    Step step;
    reader_.object([this, &step, &steps](std::string_view key) {
        if (key == "type") {
            step.type = reader_.string();
        } else if (key == "pretokenizers") {
            reader_.array([this, &steps] { add_steps(steps); });
        } else if (key == "pattern") {
            reader_.object([this, &step](std::string_view kind) {
                if (kind == "Regex") {
                    step.pattern = reader_.string();
                } else {
                    reader_.skip();
                }
            });
        } else if (key == "behavior") {
            step.behavior = reader_.string();
        } else if (key == "invert") {
            step.invert = reader_.boolean();
        } else if (key == "add_prefix_space") {
            step.add_prefix_space = reader_.boolean();
        } else if (key == "use_regex") {
            step.use_regex = reader_.boolean();
        } else {
            reader_.skip();
        }
    });
    if (step.type != "Sequence") steps.push_back(std::move(step));
}

void PipelineReader::read_pre_tokenizer() {
    if (reader_.null()) return;
    std::vector<Step> steps;
    add_steps(steps);
    split_words_ = steps.size() == 2;
    if (split_words_) {
        const Step& split = steps.front();
        if (split.type != "Split" || split.behavior != "Isolated" || split.invert) {
            refuse("the pre-tokenizer does not begin with a Split that is isolated and not inverted");
        }
        if (split.pattern != qwen2_pattern) {
            refuse("the pattern that splits words is not Qwen2's, which alone is implemented: " +
                   split.pattern);
        }
    }
    const bool ends_well = !steps.empty() && steps.size() <= 2 && steps.back().type == "ByteLevel" &&
                           !steps.back().add_prefix_space && !steps.back().use_regex;
    if (!ends_well) {
        refuse(
            "the pre-tokenizer does not end with ByteLevel (without a prefix space and a pattern of its "
            "own)");
    }
    has_steps_ = true;
}

void PipelineReader::read_decoder() {
    if (reader_.null()) return;
    std::string type;
    reader_.object([this, &type](std::string_view key) {
        if (key == "type") {
            type = reader_.string();
        } else {
            reader_.skip();
        }
    });
    if (type != "ByteLevel") refuse("the decoder '" + type + "' is not supported; only ByteLevel is");
    has_decoder_ = true;
}

}  // namespace nvlm
