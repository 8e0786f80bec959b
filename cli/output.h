// stdout is data, stderr is talk: the only ways llmctl writes to either.
#pragma once

#include <string_view>

namespace llmctl::cli {

/// The reader of our stdout went away. Caught by `report`, which ends the process quietly.
struct ClosedPipe {};

/// Writes all of `text` to stdout, unbuffered. Throws ClosedPipe when nobody reads it any more,
/// kEnvironment when the write fails (a full disk).
void write_stdout(std::string_view text);

/// Writes `text` to stderr as it is; a failure is ignored, there is nowhere left to report it.
void write_stderr(std::string_view text) noexcept;

/// "llmctl: note: text" on stderr, on one line whatever `text` holds.
void print_note(std::string_view text);

/// Whether `descriptor` is a terminal that wants colour: NO_COLOR is unset or empty, TERM is not
/// "dumb".
bool wants_color(int descriptor);

/// Whether `descriptor` is a terminal on which a line can be redrawn.
bool is_terminal(int descriptor);

}  // namespace llmctl::cli
