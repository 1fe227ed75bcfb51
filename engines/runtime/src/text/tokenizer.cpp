#include "text/tokenizer.hpp"

#include <algorithm>
#include <fstream>
#include <limits>
#include <utility>

#include "error.hpp"
#include "text/added_tokens.hpp"
#include "text/bpe.hpp"
#include "text/tokenizer_error.hpp"
#include "text/tokenizer_file.hpp"
#include "text/unicode.hpp"
#include "text/utf8.hpp"
#include "text/words.hpp"

namespace nvlm {
namespace {

bool is_ascii(std::string_view text) noexcept {
    for (const char c : text) {
        if (static_cast<unsigned char>(c) >= 0x80) return false;
    }
    return true;
}

void check_text(std::string_view text) {
    const std::size_t valid = utf8_valid_length(text);
    if (valid != text.size()) {
        throw Error(Status::usage, "the text is not valid UTF-8 at byte " + std::to_string(valid),
                    "check the encoding that it was read with");
    }
    if (text.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()) / 4) {
        throw Error(Status::usage,
                    "the text has " + std::to_string(text.size()) + " bytes, which is too much");
    }
}

std::string read_text(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    std::string text;
    if (file) {
        text.resize(static_cast<std::size_t>(std::max<std::streamoff>(file.tellg(), 0)));
        file.seekg(0).read(text.data(), static_cast<std::streamsize>(text.size()));
    }
    if (!file) refuse_tokenizer(path.string(), "cannot be read", " ");
    return text;
}

}  // namespace

struct Tokenizer::Tables {
    Tables(TokenizerFile file, const std::string& source);

    void encode_piece(std::string_view text, Bpe::Scratch& scratch, std::vector<std::int64_t>& ids) const;
    void encode_words(std::string_view text, Bpe::Scratch& scratch, std::vector<std::int64_t>& ids) const;
    std::int64_t special_id(std::string_view token) const noexcept;

    Bpe bpe;
    bool use_nfc;
    bool split_words;
    std::vector<std::string> bytes;
    std::vector<bool> special;
    std::vector<std::pair<std::string, std::int64_t>> special_ids;
    AddedTokenFinder special_tokens;
    // Looked for in the text as it is, and in its normal form.
    AddedTokenFinder plain_tokens, normalized_tokens;
    std::int64_t turn_start_id, turn_end_id, image_token_id;
    std::size_t size;
};

Tokenizer::Tables::Tables(TokenizerFile file, const std::string& source)
    : bpe(file.merges, file.byte_ids),
      use_nfc(file.nfc),
      split_words(file.split_words),
      bytes(std::move(file.bytes)),
      special(bytes.size()),
      size(file.size) {
    for (const AddedToken& token : file.added) {
        const std::string normal = use_nfc && token.normalized ? nfc(token.content) : token.content;
        (token.normalized ? normalized_tokens : plain_tokens).add(normal, token.id, token.special);
        if (!token.special) continue;
        special[static_cast<std::size_t>(token.id)] = true;
        special_tokens.add(token.content, token.id, true);
        special_ids.emplace_back(token.content, token.id);
    }
    const auto required = [this, &source](std::string_view token) {
        const std::int64_t id = special_id(token);
        if (id >= 0) return id;
        refuse_tokenizer(source, "has no special token " + std::string(token), " ");
    };
    turn_start_id = required(turn_start);
    turn_end_id = required(turn_end);
    image_token_id = required(image_token);
}

std::int64_t Tokenizer::Tables::special_id(std::string_view token) const noexcept {
    for (const auto& [text, id] : special_ids) {
        if (text == token) return id;
    }
    return -1;
}

// Calls `between(text)` for what stands between matches, and appends the ids of those that are not special.
// Special ones split nothing here, but no other token can begin inside of them.
template <typename Between>
void split_at(const AddedTokenFinder& finder, std::string_view text, std::vector<std::int64_t>& ids,
              Between&& between) {
    std::size_t done = 0;
    std::size_t from = 0;
    while (const auto match = finder.find(text, from)) {
        from = match->start + match->length;
        if (match->special) continue;
        if (match->start > done) between(text.substr(done, match->start - done));
        ids.push_back(match->id);
        done = from;
    }
    if (done < text.size()) between(text.substr(done));
}

void Tokenizer::Tables::encode_piece(std::string_view text, Bpe::Scratch& scratch,
                                     std::vector<std::int64_t>& ids) const {
    split_at(plain_tokens, text, ids, [&](std::string_view raw) {
        const std::string normal = use_nfc && !is_ascii(raw) ? nfc(raw) : std::string();
        split_at(normalized_tokens, normal.empty() ? raw : normal, ids,
                 [&](std::string_view words) { encode_words(words, scratch, ids); });
    });
}

void Tokenizer::Tables::encode_words(std::string_view text, Bpe::Scratch& scratch,
                                     std::vector<std::int64_t>& ids) const {
    if (!split_words) return bpe.encode(text, scratch, ids);
    for (std::size_t start = 0; start < text.size();) {
        const std::size_t end = word_end(text, start);
        bpe.encode(text.substr(start, end - start), scratch, ids);
        start = end;
    }
}

Tokenizer::Tokenizer(std::shared_ptr<const Tables> tables) : tables_(std::move(tables)) {}

Tokenizer Tokenizer::from_file(const std::filesystem::path& path) {
    return from_json(read_text(path), path.string());
}

Tokenizer Tokenizer::from_json(std::string_view json, const std::string& source) {
    return Tokenizer(std::make_shared<const Tables>(read_tokenizer_file(json, source), source));
}

std::vector<std::int64_t> Tokenizer::encode(std::string_view utf8) const {
    check_text(utf8);
    std::vector<std::int64_t> ids;
    Bpe::Scratch scratch;
    for (const TextPiece& piece : split_special(utf8)) {
        if (piece.special) {
            ids.push_back(tables_->special_id(piece.text));
        } else {
            tables_->encode_piece(piece.text, scratch, ids);
        }
    }
    return ids;
}

std::vector<std::int64_t> Tokenizer::encode_text(std::string_view utf8) const {
    check_text(utf8);
    std::vector<std::int64_t> ids;
    Bpe::Scratch scratch;
    tables_->encode_piece(utf8, scratch, ids);
    return ids;
}

std::vector<TextPiece> Tokenizer::split_special(std::string_view utf8) const {
    std::vector<TextPiece> pieces;
    std::size_t done = 0;
    while (const auto match = tables_->special_tokens.find(utf8, done)) {
        if (match->start > done) pieces.push_back({utf8.substr(done, match->start - done), false});
        pieces.push_back({utf8.substr(match->start, match->length), true});
        done = match->start + match->length;
    }
    if (done < utf8.size()) pieces.push_back({utf8.substr(done), false});
    return pieces;
}

std::string Tokenizer::decode_bytes(const std::vector<std::int64_t>& ids, bool skip_special) const {
    std::string bytes;
    for (const std::int64_t id : ids) {
        if (!skip_special || !is_special(id)) bytes.append(bytes_of(id));
    }
    return bytes;
}

std::string Tokenizer::decode(const std::vector<std::int64_t>& ids, bool skip_special) const {
    return utf8_lossy(decode_bytes(ids, skip_special));
}

std::string_view Tokenizer::bytes_of(std::int64_t id) const noexcept {
    const std::vector<std::string>& bytes = tables_->bytes;
    if (id < 0 || static_cast<std::uint64_t>(id) >= bytes.size()) return {};
    return bytes[static_cast<std::size_t>(id)];
}

bool Tokenizer::is_special(std::int64_t id) const noexcept {
    const std::vector<bool>& special = tables_->special;
    return id >= 0 && static_cast<std::uint64_t>(id) < special.size() &&
           special[static_cast<std::size_t>(id)];
}

std::int64_t Tokenizer::special_id(std::string_view token) const {
    const std::int64_t id = tables_->special_id(token);
    if (id < 0) throw Error(Status::failure, "there is no special token " + std::string(token));
    return id;
}

std::int64_t Tokenizer::turn_start_id() const noexcept {
    return tables_->turn_start_id;
}
std::int64_t Tokenizer::turn_end_id() const noexcept {
    return tables_->turn_end_id;
}
std::int64_t Tokenizer::image_token_id() const noexcept {
    return tables_->image_token_id;
}
std::size_t Tokenizer::size() const noexcept {
    return tables_->size;
}

}  // namespace nvlm
