#include "base/sha256.hpp"

#include <cerrno>
#include <cstdio>
#include <new>
#include <vector>

#include <openssl/evp.h>

#include "base/file.hpp"

namespace nvlm {

struct Sha256::State {
    std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context{EVP_MD_CTX_new(), EVP_MD_CTX_free};
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
    if (!state_->context || EVP_DigestInit_ex(state_->context.get(), EVP_sha256(), nullptr) != 1) {
        throw std::bad_alloc();
    }
}

Sha256::~Sha256() = default;

void Sha256::add(const void* data, std::size_t size) {
    EVP_DigestUpdate(state_->context.get(), data, size);
}

std::string Sha256::finish() {
    unsigned char bytes[EVP_MAX_MD_SIZE];
    unsigned int count = 0;
    EVP_DigestFinal_ex(state_->context.get(), bytes, &count);
    static const char digits[] = "0123456789abcdef";
    std::string text;
    for (unsigned int i = 0; i < count; ++i) {
        text += digits[bytes[i] >> 4U];
        text += digits[bytes[i] & 15U];
    }
    return text;
}

std::string sha256_of(const std::string& text) {
    Sha256 digest;
    digest.add(text.data(), text.size());
    return digest.finish();
}

std::string sha256_of_file(const std::string& path) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
    if (!file) throw FileError(path, errno);
    Sha256 digest;
    std::vector<char> chunk(std::size_t{1} << 20U);
    while (true) {
        const std::size_t count = std::fread(chunk.data(), 1, chunk.size(), file.get());
        digest.add(chunk.data(), count);
        if (count < chunk.size()) {
            if (std::ferror(file.get()) != 0) throw FileError(path, errno);
            return digest.finish();
        }
    }
}

}  // namespace nvlm
