// Prints what FasterTransformer's INIReader makes of a file: one line per key, fields split by tabs:
// section, key, text (newlines as \n), integer, real, boolean; "-" where the reader takes its default.
// See README.md for the command.
#include <cstdio>
#include <string>

#include <INIReader.h>  // not in the repository

struct Dump : INIReader {
  using INIReader::INIReader;
  void print() const {
    for (const auto& [key, value] : _values) {
      const std::string section = key.substr(0, key.find('=')), name = key.substr(key.find('=') + 1);
      std::string text;
      for (const char c : value) text += c == '\n' ? std::string("\\n") : std::string(1, c);
      std::printf("%s\t%s\t%s", section.c_str(), name.c_str(), text.c_str());
      const long a = GetInteger(section, name, -7), b = GetInteger(section, name, -8);
      a == b ? std::printf("\t%ld", a) : std::printf("\t-");
      const double x = GetReal(section, name, -7), y = GetReal(section, name, -8);
      x == y ? std::printf("\t%.17g", x) : std::printf("\t-");
      const bool t = GetBoolean(section, name, true), f = GetBoolean(section, name, false);
      t == f ? std::printf("\t%d\n", t) : std::printf("\t-\n");
    }
  }
};

int main(int, char** argv) {
  const Dump ini{std::string(argv[1])};
  if (ini.ParseError() != 0) return 1;
  ini.print();
}
