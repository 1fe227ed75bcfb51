#include "text/tokenizer_file.hpp"

#include <algorithm>
#include <optional>
#include <utility>

#include "text/byte_alphabet.hpp"
#include "text/json_reader.hpp"
#include "text/pipeline_reader.hpp"
#include "text/tokenizer_error.hpp"
#include "text/vocabulary.hpp"

namespace nvlm {
namespace {

using Kind = JsonReader::Kind;

// Far above any vocabulary; a larger id is a mistake that would take gigabytes.
constexpr std::int64_t id_limit = std::int64_t{1} << 22U;
constexpr std::size_t size_limit = std::size_t{1} << 30U;
class Loader {
  public:
    Loader(std::string_view json, const std::string& source)
        : source_(source), reader_(json, source + " is not a valid tokenizer"), pipeline_(reader_, source) {
        if (json.size() > size_limit) refuse("the file has " + std::to_string(json.size()) + " bytes");
    }

    TokenizerFile read();

  private:
    [[noreturn]] void refuse(const std::string& what) const { refuse_tokenizer(source_, what); }

    void read_model();
    void read_model_setting(std::string_view key);
    void read_vocabulary();
    void read_merges();
    void read_merge(std::string& joined);
    std::uint32_t merge_part(std::string_view token) const;
    void read_added_token();
    std::int64_t read_id();
    void find_byte_ids();
    void settle_added_tokens();
    void fill_bytes();

    std::string source_;
    JsonReader reader_;
    PipelineReader pipeline_;
    Vocabulary vocabulary_;
    TokenizerFile file_;
    std::optional<std::size_t> merges_at_;
    bool has_model_ = false, has_merges_ = false;
    bool has_unknown_token_ = false;
};

TokenizerFile Loader::read() {
    reader_.object([this](std::string_view key) {
        if (key == "model") return read_model();
        if (pipeline_.read(key)) return;
        if (key != "added_tokens") return reader_.skip();
        reader_.array([this] { read_added_token(); });
    });
    reader_.end();
    if (!has_model_) refuse("there is no 'model'");
    pipeline_.check_complete();
    file_.nfc = pipeline_.nfc();
    file_.split_words = pipeline_.split_words();
    find_byte_ids();
    settle_added_tokens();
    fill_bytes();
    return std::move(file_);
}

void Loader::read_model() {
    if (has_model_) refuse("'model' is there twice");
    if (reader_.peek() != Kind::object) refuse("'model' is not an object");
    has_model_ = true;
    bool has_vocabulary = false;
    reader_.object([this, &has_vocabulary](std::string_view key) {
        if (key == "vocab") {
            read_vocabulary();
            has_vocabulary = true;
        } else if (key == "merges") {
            merges_at_ = reader_.position();
            has_vocabulary ? read_merges() : reader_.skip();
        } else {
            read_model_setting(key);
        }
    });
    if (!has_vocabulary) refuse("model has no 'vocab'");
    if (!merges_at_) refuse("model has no 'merges'");
    if (!has_merges_) {
        const std::size_t end = reader_.position();
        reader_.seek(*merges_at_);
        read_merges();
        reader_.seek(end);
    }
}

void Loader::read_model_setting(std::string_view key) {
    const std::string name = "model." + std::string(key);
    if (key == "type") {
        const std::string type(reader_.string());
        if (type != "BPE") refuse(name + " is '" + type + "'; only BPE is supported");
    } else if (key == "dropout") {
        if (!reader_.null()) refuse(name + " is set, which is not supported");
    } else if (key == "unk_token") {
        has_unknown_token_ = !reader_.null();
        if (has_unknown_token_) reader_.string();
    } else if (key == "continuing_subword_prefix" || key == "end_of_word_suffix") {
        if (!reader_.null() && !reader_.string().empty()) refuse(name + " is set, which is not supported");
    } else if (key == "byte_fallback" || key == "ignore_merges") {
        if (reader_.boolean()) refuse(name + " is true, which is not supported");
    } else {
        reader_.skip();
    }
}

std::int64_t Loader::read_id() {
    const std::int64_t id = reader_.integer();
    if (id < 0 || id >= id_limit) reader_.fail("a token has the id " + std::to_string(id));
    return id;
}

void Loader::read_vocabulary() {
    if (vocabulary_.size() != 0) refuse("'model.vocab' is there twice");
    reader_.object([this](std::string_view token) {
        const auto id = static_cast<std::uint32_t>(read_id());
        if (!vocabulary_.insert(token, id)) reader_.fail("a token is in the vocabulary twice");
    });
}

void Loader::read_merges() {
    if (has_merges_) refuse("'model.merges' is there twice");
    has_merges_ = true;
    std::string joined;
    reader_.array([this, &joined] { read_merge(joined); });
}

std::uint32_t Loader::merge_part(std::string_view token) const {
    const std::int64_t id = vocabulary_.find(token);
    if (id == Vocabulary::absent) {
        refuse("merge " + std::to_string(file_.merges.size()) + " has '" + std::string(token) +
               "', which is not in the vocabulary");
    }
    return static_cast<std::uint32_t>(id);
}

// Either "left right" or ["left", "right"].
void Loader::read_merge(std::string& joined) {
    Merge merge{};
    joined.clear();
    const auto add = [this, &joined](std::string_view part) {
        joined.append(part);
        return merge_part(part);
    };
    if (reader_.peek() == Kind::string) {
        const std::string_view pair = reader_.string();
        const std::size_t space = pair.find(' ');
        if (space == std::string_view::npos || pair.find(' ', space + 1) != std::string_view::npos) {
            reader_.fail("a merge is not two tokens with a space between");
        }
        merge.left = add(pair.substr(0, space));
        merge.right = add(pair.substr(space + 1));
    } else {
        int parts = 0;
        reader_.array([&] { (parts++ == 0 ? merge.left : merge.right) = add(reader_.string()); });
        if (parts != 2) reader_.fail("a merge does not have two tokens");
    }
    merge.merged = merge_part(joined);
    file_.merges.push_back(merge);
}

void Loader::read_added_token() {
    AddedToken token;
    int found = 0;
    reader_.object([this, &token, &found](std::string_view key) {
        ++found;
        if (key == "id") {
            token.id = read_id();
        } else if (key == "content") {
            token.content = reader_.string();
        } else if (key == "special") {
            token.special = reader_.boolean();
        } else if (key == "normalized") {
            token.normalized = reader_.boolean();
        } else if (key == "single_word" || key == "lstrip" || key == "rstrip") {
            if (reader_.boolean()) {
                refuse("an added token has '" + std::string(key) + "', which is not supported");
            }
        } else {
            --found;
            reader_.skip();
        }
    });
    if (found != 7) reader_.fail("an added token lacks one of its seven settings");
    if (token.content.empty()) reader_.fail("an added token has no content");
    file_.added.push_back(std::move(token));
}

void Loader::find_byte_ids() {
    for (std::size_t byte = 0; byte < 256; ++byte) {
        file_.byte_ids[byte] = vocabulary_.find(byte_characters()[byte]);
        if (file_.byte_ids[byte] == Vocabulary::absent && has_unknown_token_) {
            refuse("model.unk_token is set and not every byte has a token, which is not supported");
        }
    }
}

// The library gives added tokens ids of its own: the vocabulary's, or the next one in the order of the file.
void Loader::settle_added_tokens() {
    const auto vocabulary_size = static_cast<std::int64_t>(vocabulary_.size());
    std::int64_t next = vocabulary_size;
    for (const AddedToken& token : file_.added) {
        const std::int64_t known = vocabulary_.find(token.content);
        const std::int64_t expected = known == Vocabulary::absent ? next : known;
        if (token.id != expected) {
            refuse("the added token " + token.content + " has the id " + std::to_string(token.id) +
                   ", but the order of tokens gives it " + std::to_string(expected));
        }
        next = std::max(next, token.id + 1);
        if (known == Vocabulary::absent) {
            vocabulary_.insert(token.content, static_cast<std::uint32_t>(token.id));
        }
    }
}

void Loader::fill_bytes() {
    file_.size = vocabulary_.size();
    vocabulary_.for_each([this](std::string_view token, std::uint32_t id) {
        if (id >= file_.bytes.size()) file_.bytes.resize(std::size_t{id} + 1);
        if (!file_.bytes[id].empty()) refuse("two tokens have the id " + std::to_string(id));
        file_.bytes[id] = token_bytes(token);
    });
}

}  // namespace

TokenizerFile read_tokenizer_file(std::string_view json, const std::string& source) {
    return Loader(json, source).read();
}

}  // namespace nvlm
