// Models made byte by byte, for what trained ones do not show. The ids that trained and published
// models give are compared with the library's in tokenizer_golden_test.cc and tests/interop.
#include <doctest/doctest.h>

#include <cstring>
#include <string>
#include <vector>

#include "formats/core/error.h"
#include "runtime/tokenizer/sentencepiece_model.h"

namespace llmctl::runtime::tokenizer {

namespace {

using Type = SentencePiece::Type;
using Ids = std::vector<int32_t>;

std::string bytes_field(unsigned number, const std::string& bytes) {
  REQUIRE(bytes.size() < 128);
  return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(bytes.size())} + bytes;
}
std::string number_field(unsigned number, unsigned value) {
  std::string out;
  for (unsigned tag = number << 3; true; tag >>= 7) {
    out += static_cast<char>(tag < 128 ? tag : tag | 128);
    if (tag < 128) break;
  }
  return out + static_cast<char>(value);
}
std::string piece(const std::string& spelling, float score = 0, Type type = Type::kNormal) {
  std::string bits(4, '\0');
  std::memcpy(bits.data(), &score, 4);
  return bytes_field(1, bytes_field(1, spelling) + static_cast<char>(2 << 3 | 5) + bits +
                            number_field(3, static_cast<unsigned>(type)));
}
std::string unknown() { return piece("<unk>", 0, Type::kUnknown); }
std::string bpe() { return bytes_field(2, number_field(3, 2)); }
/// No prefix, nothing collapsed.
std::string plain() { return bytes_field(3, number_field(3, 0) + number_field(4, 0)); }

Ids ids_of(const std::string& model, const std::string& text) {
  Ids ids;
  SentencePieceModel(model, "test").encode(text, ids);
  return ids;
}
std::string refusal(const std::string& model) {
  try {
    const SentencePieceModel opened(model, "test");
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

}  // namespace

TEST_CASE("sentencepiece: a model that libsentencepiece refuses is refused") {
  CHECK(refusal(unknown() + piece("a")).empty());
  CHECK(refusal(piece("a")).find("no unknown piece") != std::string::npos);
  CHECK(refusal(unknown() + unknown()).find("two unknown") != std::string::npos);
  CHECK(refusal(unknown() + piece("<u>", 0, Type::kUnknown)).find("two unknown") !=
        std::string::npos);
  CHECK(refusal(unknown() + piece("a") + piece("a")).find("comes twice") != std::string::npos);
  CHECK(refusal(unknown() + piece("")).find("empty piece") != std::string::npos);
  CHECK(refusal(unknown() + piece("\xC3")).find("not UTF-8") != std::string::npos);
  CHECK(refusal(unknown() + piece("<0x41>", 0, Type::kByte)).find("without byte_fallback") !=
        std::string::npos);
  CHECK(refusal(unknown() + bytes_field(2, number_field(35, 1))).find("256 byte pieces") !=
        std::string::npos);
  CHECK(refusal(unknown() + bytes_field(3, bytes_field(2, "xyz"))).find("precompiled_charsmap") !=
        std::string::npos);
  CHECK(refusal(unknown() + std::string("\x0A\x50", 2)).find("malformed") != std::string::npos);
}

TEST_CASE("sentencepiece: a piece for texts may have the spelling of a reserved one") {
  const std::string model =
      unknown() + piece("ab", 0, Type::kControl) + piece("ab", -1) + bpe() + plain();
  CHECK(refusal(model).empty());
  CHECK(ids_of(model, "ab") == Ids{2});
}

TEST_CASE("sentencepiece: characters that are no pieces merge where their pair is one") {
  const std::string model = unknown() + piece("xy", -2) + piece("yx", -1) + bpe() + plain();
  CHECK(ids_of(model, "xy") == Ids{1});
  CHECK(ids_of(model, "xyx") == Ids{0, 2});
  CHECK(ids_of(model, "zz") == Ids{0});  // a run of unknown text is one piece
}

TEST_CASE("sentencepiece: of equal scores the leftmost pair merges") {
  const std::string model =
      unknown() + piece("a") + piece("aa", -1) + piece("b") + piece("ab", -1) + bpe() + plain();
  CHECK(ids_of(model, "aab") == Ids{2, 3});
  CHECK(ids_of(model, "bab") == Ids{3, 4});
}

TEST_CASE("sentencepiece: a megabyte without a cut is encoded in the time of a sort") {
  const std::string model =
      unknown() + piece("a") + piece("aa", -1) + piece("aaaa", -2) + bpe() + plain();
  CHECK(ids_of(model, std::string(1 << 20, 'a')).size() == size_t{1} << 18);
}

}  // namespace llmctl::runtime::tokenizer
