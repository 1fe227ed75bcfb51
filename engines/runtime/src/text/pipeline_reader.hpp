// What a tokenizer.json says of the steps around its model: normalizer, pre-tokenizer and decoder.

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/json_reader.hpp"

namespace nvlm {

class PipelineReader {
  public:
    // `reader` must outlive this.
    PipelineReader(JsonReader& reader, const std::string& source) : reader_(reader), source_(source) {}

    // Reads the value that comes next if `key` is one of the three. Throws Error (failure): a step that is
    // not implemented.
    bool read(std::string_view key);
    // Throws Error (failure): there was no pre-tokenizer or no decoder.
    void check_complete() const;

    bool nfc() const noexcept { return nfc_; }
    bool split_words() const noexcept { return split_words_; }

  private:
    struct Step;

    [[noreturn]] void refuse(const std::string& what) const;
    void read_normalizer();
    void read_pre_tokenizer();
    void add_steps(std::vector<Step>& steps);
    void read_decoder();

    JsonReader& reader_;
    std::string source_;
    bool nfc_ = false, split_words_ = false, has_steps_ = false, has_decoder_ = false;
};

}  // namespace nvlm
