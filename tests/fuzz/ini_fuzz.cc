// INI texts: every typed look-up answers or refuses.
#include <string_view>

#include "formats/core/error.h"
#include "formats/ini.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using llmctl::formats::Ini;
  try {
    const Ini ini = Ini::parse({reinterpret_cast<const char*>(data), size}, "fuzz");
    for (const auto& section : ini.sections()) {
      for (const char* key : {"head_num", "layernorm_eps", "a", "key"}) {
        for (const auto& look_up :
             {+[](const Ini&i, const std::string&s, const char*k) { i.find_integer(s, k); },
              +[](const Ini&i, const std::string&s, const char*k) { i.find_real(s, k); },
              +[](const Ini&i, const std::string&s, const char*k) { i.find_bool(s, k); }}) {
          try {
            look_up(ini, section, key);
          } catch (const llmctl::Error&) {
          }
        }
      }
    }
  } catch (const llmctl::Error&) {
  }
  return 0;
}
