#include "cli/bench_report.h"

#include <sys/sysinfo.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>

#include "cli/size.h"
#include "cli/table.h"
#include "formats/core/error.h"
#include "formats/core/thread_pool.h"
#include "formats/json.h"
#include "kernels/isa.h"

namespace llmctl::cli {
namespace {

using runtime::BenchRow;
using runtime::Percentiles;

constexpr double kGiga = 1e9;

std::string rate(double tokens_per_second) {
  return tokens_per_second > 0 ? fixed(tokens_per_second, tokens_per_second < 100 ? 1 : 0) : "-";
}

std::string ms(double value) { return value > 0 ? fixed(value, value < 10 ? 2 : 1) : "-"; }

/// Columns of the table and of Markdown.
struct Column {
  const char* name;
  std::string (*text)(const BenchRow& row);
};

constexpr std::array kColumns = {
    Column{"batch", [](const BenchRow& r) { return std::to_string(r.what.batch_size); }},
    Column{"in", [](const BenchRow& r) { return std::to_string(r.what.input_len); }},
    Column{"out", [](const BenchRow& r) { return std::to_string(r.what.output_len); }},
    Column{"latency ms", [](const BenchRow& r) { return ms(r.end_to_end_ms.p50); }},
    Column{"p99", [](const BenchRow& r) { return ms(r.end_to_end_ms.p99); }},
    Column{"first token ms", [](const BenchRow& r) { return ms(r.first_token_ms.p50); }},
    Column{"p99", [](const BenchRow& r) { return ms(r.first_token_ms.p99); }},
    Column{"per token ms", [](const BenchRow& r) { return ms(r.per_token_ms.p50); }},
    Column{"p99", [](const BenchRow& r) { return ms(r.per_token_ms.p99); }},
    Column{"prefill tokens/s", [](const BenchRow& r) { return rate(r.prefill_tokens_per_second); }},
    Column{"decode tokens/s", [](const BenchRow& r) { return rate(r.decode_tokens_per_second); }},
    Column{"weights GB/s",
           [](const BenchRow& r) {
             return r.decode_bytes_per_second > 0 ? fixed(r.decode_bytes_per_second / kGiga, 1)
                                                  : std::string("-");
           }},
    Column{"% of memory",
           [](const BenchRow& r) {
             return r.decode_bytes_per_second > 0 ? fixed(r.memory_fraction() * 100, 0)
                                                  : std::string("-");
           }},
    Column{"peak memory", [](const BenchRow& r) { return format_size(r.peak_bytes); }},
};

std::string compute_limit(const BenchReport& report) {
  if (report.peak_flops <= 0) return "";
  return " and computes " + fixed(report.peak_flops / kGiga, 0) + " GFLOP/s in " +
         report.peak_dtype + " with " + std::to_string(report.threads) + " threads" +
         (report.could_round ? "; twice that with --activation-dtype bf16" : "");
}

std::vector<std::vector<std::string>> about(const BenchReport& report) {
  const std::string grid = report.tp * report.pp > 1 ? ", tp " + std::to_string(report.tp) +
                                                           ", pp " + std::to_string(report.pp)
                                                     : "";
  return {
      {"model", report.model + " (" + report.family + ", " + format_count(report.num_parameters) +
                    " parameters, " + report.dtype + ", " + report.source + ")"},
      {"weights", format_size(report.weight_bytes) + ", of which one pass reads " +
                      format_size(report.pass_bytes) + "; loaded in " + fixed(report.load_ms, 0) +
                      " ms"},
      {"machine", report.machine.cpu + ", " + std::to_string(report.machine.cores) + " cores, " +
                      report.machine.isa + ", " + format_size(report.machine.memory_bytes) +
                      " memory" + (report.device.empty() ? "" : "; computed by " + report.device)},
      {"limits", "reads " + fixed(report.memory_bytes_per_second / kGiga, 1) + " GB/s" +
                     compute_limit(report)},
      {"measured", std::to_string(report.rounds) + " rounds after " +
                       std::to_string(report.warmup) + " to warm up" + grid + ", llmctl " +
                       report.version},
  };
}

Json percentiles_json(const Percentiles& values) {
  return {{"p50", values.p50}, {"p90", values.p90}, {"p99", values.p99}};
}

Percentiles get_percentiles(const formats::JsonFields& row, const char* key) {
  const formats::JsonFields fields = row.below(row.get(key));
  return {fields.number("p50"), fields.number("p90"), fields.number("p99")};
}

/// "+12.3 %"; how a value changed.
std::string change(double before, double after) {
  if (before <= 0 || after <= 0) return "-";
  const double percent = (after / before - 1) * 100;
  return (percent >= 0 ? "+" : "") + fixed(percent, 1) + " %";
}

}  // namespace

std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

BenchMachine describe_machine() {
  BenchMachine machine;
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (!line.starts_with("model name")) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) machine.cpu = line.substr(colon + 2);
    break;
  }
  if (machine.cpu.empty()) machine.cpu = "unknown CPU";
  machine.isa = kernels::isa_name(kernels::active_isa());
  machine.cores = available_cores();
  struct sysinfo info {};
  if (::sysinfo(&info) == 0) {
    machine.memory_bytes = static_cast<uint64_t>(info.totalram) * info.mem_unit;
  }
  return machine;
}

std::string bench_table(const BenchReport& report) {
  std::vector<std::vector<std::string>> rows;
  rows.emplace_back();
  std::string alignment;
  for (const Column& column : kColumns) {
    rows.back().emplace_back(column.name);
    alignment += 'r';
  }
  for (const BenchRow& row : report.rows) {
    rows.emplace_back();
    for (const Column& column : kColumns) rows.back().push_back(column.text(row));
  }
  return format_table(about(report), "ll") + "\n" + format_table(rows, alignment);
}

std::string bench_markdown(const BenchReport& report) {
  std::string text;
  for (const auto& line : about(report)) text += "- " + line[0] + ": " + line[1] + "\n";
  text += "\n|";
  for (const Column& column : kColumns) text += " " + std::string(column.name) + " |";
  text += "\n|";
  for (size_t i = 0; i < kColumns.size(); ++i) text += "---:|";
  text += "\n";
  for (const BenchRow& row : report.rows) {
    text += "|";
    for (const Column& column : kColumns) text += " " + column.text(row) + " |";
    text += "\n";
  }
  return text;
}

std::string bench_csv(const BenchReport& report) {
  std::string text =
      "batch_size,input_len,output_len,end_to_end_ms_p50,end_to_end_ms_p90,end_to_end_ms_p99,"
      "first_token_ms_p50,first_token_ms_p90,first_token_ms_p99,per_token_ms_p50,per_token_ms_p90,"
      "per_token_ms_p99,prefill_ms,decode_ms,prefill_tokens_per_second,decode_tokens_per_second,"
      "decode_bytes_per_second,memory_bytes_per_second,peak_bytes\n";
  for (const BenchRow& row : report.rows) {
    const auto three = [](const Percentiles& p) {
      return fixed(p.p50, 3) + "," + fixed(p.p90, 3) + "," + fixed(p.p99, 3) + ",";
    };
    text += std::to_string(row.what.batch_size) + "," + std::to_string(row.what.input_len) + "," +
            std::to_string(row.what.output_len) + "," + three(row.end_to_end_ms) +
            three(row.first_token_ms) + three(row.per_token_ms) + fixed(row.prefill_ms, 3) + "," +
            fixed(row.decode_ms, 3) + "," + fixed(row.prefill_tokens_per_second, 2) + "," +
            fixed(row.decode_tokens_per_second, 2) + "," + fixed(row.decode_bytes_per_second, 0) +
            "," + fixed(row.memory_bytes_per_second, 0) + "," + std::to_string(row.peak_bytes) +
            "\n";
  }
  return text;
}

Json bench_json(const BenchReport& report) {
  Json json = {{"llmctl_bench", 1},
               {"llmctl_version", report.version},
               {"model", report.model},
               {"family", report.family},
               {"source", report.source},
               {"dtype", report.dtype},
               {"num_parameters", report.num_parameters},
               {"weight_bytes", report.weight_bytes},
               {"pass_bytes", report.pass_bytes},
               {"flops_per_token", report.flops_per_token},
               {"load_ms", report.load_ms},
               {"tensor_parallel_size", report.tp},
               {"pipeline_parallel_size", report.pp},
               {"threads", report.threads},
               {"warmup", report.warmup},
               {"rounds", report.rounds},
               {"machine",
                {{"cpu", report.machine.cpu},
                 {"isa", report.machine.isa},
                 {"cores", report.machine.cores},
                 {"memory_bytes", report.machine.memory_bytes}}},
               {"memory_bytes_per_second", report.memory_bytes_per_second},
               {"peak_flops", report.peak_flops},
               {"device", report.device.empty() ? "cpu" : report.device},
               {"rows", Json::array()}};
  for (const BenchRow& row : report.rows) {
    json["rows"].push_back({{"batch_size", row.what.batch_size},
                            {"input_len", row.what.input_len},
                            {"output_len", row.what.output_len},
                            {"first_token_ms", percentiles_json(row.first_token_ms)},
                            {"per_token_ms", percentiles_json(row.per_token_ms)},
                            {"end_to_end_ms", percentiles_json(row.end_to_end_ms)},
                            {"prefill_ms", row.prefill_ms},
                            {"decode_ms", row.decode_ms},
                            {"prefill_tokens_per_second", row.prefill_tokens_per_second},
                            {"decode_tokens_per_second", row.decode_tokens_per_second},
                            {"decode_bytes_per_second", row.decode_bytes_per_second},
                            {"memory_bytes_per_second", row.memory_bytes_per_second},
                            {"memory_fraction", row.memory_fraction()},
                            {"peak_bytes", row.peak_bytes}});
  }
  return json;
}

BenchReport parse_bench(std::string_view text, const std::string& where) {
  const Json json = formats::parse_json(text, where);
  const formats::JsonFields root(json, where, "give a file that 'llmctl bench --json' wrote");
  if (!json.contains("llmctl_bench") || json["llmctl_bench"] != 1) {
    root.refuse("not a result of version 1 of 'llmctl bench'");
  }
  BenchReport report;
  report.version = root.text("llmctl_version");
  report.model = root.text("model");
  report.dtype = root.text("dtype");
  report.tp = root.size("tensor_parallel_size");
  report.pp = root.size("pipeline_parallel_size");
  report.threads = root.size("threads");
  report.memory_bytes_per_second = root.number("memory_bytes_per_second");
  const formats::JsonFields machine = root.below(root.get("machine"));
  report.machine.cpu = machine.text("cpu");
  for (const Json& entry : root.list("rows")) {
    const formats::JsonFields fields = root.below(entry);
    BenchRow& row = report.rows.emplace_back();
    row.what = {fields.size("batch_size"), fields.size("input_len"), fields.size("output_len")};
    row.first_token_ms = get_percentiles(fields, "first_token_ms");
    row.per_token_ms = get_percentiles(fields, "per_token_ms");
    row.end_to_end_ms = get_percentiles(fields, "end_to_end_ms");
    row.prefill_tokens_per_second = fields.number("prefill_tokens_per_second");
    row.decode_tokens_per_second = fields.number("decode_tokens_per_second");
    row.decode_bytes_per_second = fields.number("decode_bytes_per_second");
    row.memory_bytes_per_second = fields.number("memory_bytes_per_second");
  }
  return report;
}

std::string compare_benches(const BenchReport& first, const BenchReport& second) {
  std::vector<std::vector<std::string>> rows = {{"batch", "in", "out", "latency ms", "", "change",
                                                 "first token ms", "", "change", "prefill tokens/s",
                                                 "", "change", "decode tokens/s", "", "change"}};
  for (const BenchRow& a : first.rows) {
    for (const BenchRow& b : second.rows) {
      if (a.what.batch_size != b.what.batch_size || a.what.input_len != b.what.input_len ||
          a.what.output_len != b.what.output_len) {
        continue;
      }
      rows.push_back({std::to_string(a.what.batch_size), std::to_string(a.what.input_len),
                      std::to_string(a.what.output_len), ms(a.end_to_end_ms.p50),
                      ms(b.end_to_end_ms.p50), change(a.end_to_end_ms.p50, b.end_to_end_ms.p50),
                      ms(a.first_token_ms.p50), ms(b.first_token_ms.p50),
                      change(a.first_token_ms.p50, b.first_token_ms.p50),
                      rate(a.prefill_tokens_per_second), rate(b.prefill_tokens_per_second),
                      change(a.prefill_tokens_per_second, b.prefill_tokens_per_second),
                      rate(a.decode_tokens_per_second), rate(b.decode_tokens_per_second),
                      change(a.decode_tokens_per_second, b.decode_tokens_per_second)});
      break;
    }
  }
  if (rows.size() == 1) {
    throw_usage("--compare", "the two have no batch size and lengths in common",
                "measure the same grid");
  }
  std::vector<std::vector<std::string>> heads;
  for (const auto& [name, report] : {std::pair{"first", &first}, {"second", &second}}) {
    heads.push_back({name, printable(report->model) + ", " + printable(report->dtype) + ", tp " +
                               std::to_string(report->tp) + ", pp " + std::to_string(report->pp) +
                               ", " + std::to_string(report->threads) + " threads, llmctl " +
                               printable(report->version) + ", " + printable(report->machine.cpu) +
                               ", reads " + fixed(report->memory_bytes_per_second / kGiga, 1) +
                               " GB/s"});
  }
  return format_table(heads, "ll") + "\n" + format_table(rows, std::string(15, 'r'));
}

}  // namespace llmctl::cli
