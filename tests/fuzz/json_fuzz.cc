// The JSON parser and the scanner: they agree on what is JSON, duplicate keys aside.
#include <cstdlib>
#include <span>
#include <string_view>
#include <utility>

#include "formats/core/error.h"
#include "formats/json.h"
#include "formats/json_scanner.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  bool is_parsed = true, is_scanned = true;
  try {
    llmctl::formats::parse_json({reinterpret_cast<const char*>(data), size}, "fuzz");
  } catch (const llmctl::Error&) {
    is_parsed = false;
  }
  auto text = std::as_bytes(std::span(data, size));
  try {
    llmctl::formats::JsonScanner scanner([&] { return std::exchange(text, {}); }, "fuzz");
    scanner.skip_value();
    scanner.finish(true);
  } catch (const llmctl::Error&) {
    is_scanned = false;
  }
  // The scanner takes no byte order mark.
  if (is_parsed && !is_scanned && !(size > 0 && data[0] == 0xEF)) std::abort();
  return 0;
}
