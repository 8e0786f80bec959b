// The page of `llmctl bench --html`: a table and two charts, drawn as SVG by hand so that the file
// stands alone.
#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "cli/bench_report.h"
#include "cli/size.h"

namespace llmctl::cli {
namespace {

using runtime::BenchRow;

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

constexpr double kWidth = 640, kHeight = 380;
constexpr double kLeft = 76, kRight = 24, kTop = 40, kBottom = 52;

constexpr const char* kColors[] = {"#1f6feb", "#d1495b", "#2a9d5c", "#b8860b", "#6f42c1"};

/// "1", "2.5", "40 k".
std::string short_number(double value) {
  const auto trim = [](double v) {
    std::string text = fixed(v, v < 10 && v != std::floor(v) ? 1 : 0);
    return text;
  };
  if (value >= 1e9) return trim(value / 1e9) + " G";
  if (value >= 1e6) return trim(value / 1e6) + " M";
  if (value >= 1e3) return trim(value / 1e3) + " k";
  return value < 1 ? fixed(value, 2) : trim(value);
}

struct Range {
  double lo = 1, hi = 1;
};

/// A chart with logarithmic axes, which suit powers of two and ratios.
class Chart {
 public:
  Chart(const std::string& title, const std::string& x_name, const std::string& y_name, Range x,
        Range y)
      : x_(x), y_(y) {
    svg_ = "<svg viewBox=\"0 0 " + fixed(kWidth, 0) + " " + fixed(kHeight, 0) +
           "\" role=\"img\" aria-label=\"" + escaped(title) + "\">\n";
    text(kLeft, 20, title, "title");
    text((kLeft + kWidth - kRight) / 2, kHeight - 10, x_name, "middle");
    svg_ += "<text class=\"middle\" transform=\"translate(16," +
            fixed((kTop + kHeight - kBottom) / 2, 0) + ") rotate(-90)\">" + escaped(y_name) +
            "</text>\n";
  }

  double x(double value) const { return kLeft + (kWidth - kLeft - kRight) * part(value, x_); }
  double y(double value) const {
    return kHeight - kBottom - (kHeight - kTop - kBottom) * part(value, y_);
  }

  void x_tick(double value, const std::string& label) {
    line(x(value), kTop, x(value), kHeight - kBottom, "grid");
    text(x(value), kHeight - kBottom + 18, label, "middle");
  }
  void y_tick(double value, const std::string& label) {
    line(kLeft, y(value), kWidth - kRight, y(value), "grid");
    text(kLeft - 8, y(value) + 4, label, "end");
  }
  /// Ticks at 1, 2 and 5 times powers of ten.
  void ticks(Range range, const std::function<void(double)>& tick) const {
    for (int power = -6; power < 16; ++power) {
      for (const double step : {1.0, 2.0, 5.0}) {
        const double value = step * std::pow(10.0, power);
        const bool is_dense = range.hi / range.lo > 1000 && step != 1;
        if (value >= range.lo && value <= range.hi && !is_dense) tick(value);
      }
    }
  }
  void line(double x1, double y1, double x2, double y2, const std::string& kind) {
    svg_ += "<line class=\"" + kind + "\" x1=\"" + fixed(x1, 1) + "\" y1=\"" + fixed(y1, 1) +
            "\" x2=\"" + fixed(x2, 1) + "\" y2=\"" + fixed(y2, 1) + "\"/>\n";
  }
  void text(double x, double y, const std::string& text, const std::string& kind) {
    svg_ += "<text class=\"" + kind + "\" x=\"" + fixed(x, 1) + "\" y=\"" + fixed(y, 1) + "\">" +
            escaped(text) + "</text>\n";
  }
  void point(double px, double py, const char* color, const std::string& what) {
    svg_ += "<circle cx=\"" + fixed(px, 1) + "\" cy=\"" + fixed(py, 1) + "\" r=\"4\" fill=\"" +
            color + "\"><title>" + escaped(what) + "</title></circle>\n";
  }
  void path(const std::vector<std::pair<double, double>>& points, const char* color) {
    svg_ += "<polyline fill=\"none\" stroke-width=\"2\" stroke=\"" + std::string(color) +
            "\" points=\"";
    for (const auto& [px, py] : points) svg_ += fixed(px, 1) + "," + fixed(py, 1) + " ";
    svg_ += "\"/>\n";
  }
  void legend(size_t index, const char* color, const std::string& name) {
    const double at = kTop + 14 + 18 * static_cast<double>(index);
    svg_ += "<rect x=\"" + fixed(kLeft + 12, 0) + "\" y=\"" + fixed(at - 9, 0) +
            "\" width=\"10\" height=\"10\" fill=\"" + color + "\"/>\n";
    text(kLeft + 28, at, name, "legend");
  }
  std::string finish() { return svg_ + "</svg>\n"; }

 private:
  static double part(double value, Range range) {
    const double span = std::log(range.hi / range.lo);
    return span <= 0 ? 0.5 : std::clamp(std::log(value / range.lo) / span, 0.0, 1.0);
  }

  Range x_, y_;
  std::string svg_;
};

void widen(Range& range, double value) {
  if (value <= 0) return;
  range.lo = std::min(range.lo, value);
  range.hi = std::max(range.hi, value);
}

Range range_of(const std::vector<BenchRow>& rows,
               const std::function<double(const BenchRow&)>& value) {
  Range range{HUGE_VAL, 0};
  for (const BenchRow& row : rows) widen(range, value(row));
  if (range.hi <= 0) return {1, 10};
  return range;
}

std::string latency_chart(const BenchReport& report) {
  const auto batch = [](const BenchRow& r) { return static_cast<double>(r.what.batch_size); };
  const Range x = range_of(report.rows, batch);
  Range y = range_of(report.rows, [](const BenchRow& r) { return r.end_to_end_ms.p50; });
  widen(y, range_of(report.rows, [](const BenchRow& r) { return r.end_to_end_ms.p99; }).hi);
  y = {y.lo / 1.5, y.hi * 2.5};
  Chart chart("Latency over batch size", "batch size", "milliseconds, end to end", x, y);
  std::vector<double> seen;
  for (const BenchRow& row : report.rows) {
    if (std::find(seen.begin(), seen.end(), batch(row)) != seen.end()) continue;
    seen.push_back(batch(row));
    chart.x_tick(batch(row), std::to_string(row.what.batch_size));
  }
  chart.ticks(y, [&](double value) { chart.y_tick(value, short_number(value)); });
  // One line for each pair of lengths.
  std::vector<std::pair<int64_t, int64_t>> pairs;
  for (const BenchRow& row : report.rows) {
    const std::pair pair{row.what.input_len, row.what.output_len};
    if (std::find(pairs.begin(), pairs.end(), pair) == pairs.end()) pairs.push_back(pair);
  }
  for (size_t i = 0; i < pairs.size(); ++i) {
    const char* color = kColors[i % std::size(kColors)];
    std::vector<std::pair<double, double>> points;
    for (const BenchRow& row : report.rows) {
      if (pairs[i] != std::pair{row.what.input_len, row.what.output_len}) continue;
      const double px = chart.x(batch(row));
      points.emplace_back(px, chart.y(row.end_to_end_ms.p50));
      chart.line(px, chart.y(row.end_to_end_ms.p50), px, chart.y(row.end_to_end_ms.p99), "spread");
      chart.point(
          points.back().first, points.back().second, color,
          fixed(row.end_to_end_ms.p50, 1) + " ms (p99 " + fixed(row.end_to_end_ms.p99, 1) + " ms)");
    }
    chart.path(points, color);
    chart.legend(i, color,
                 std::to_string(pairs[i].first) + " in, " + std::to_string(pairs[i].second) +
                     " out; thin line to p99");
  }
  return chart.finish();
}

/// Operations per second over operations per byte of weights, below what memory and arithmetic
/// allow.
std::string roofline_chart(const BenchReport& report) {
  struct Point {
    double intensity, flops;
    bool is_decode;
    std::string what;
  };
  std::vector<Point> points;
  const double per_byte = report.flops_per_token / static_cast<double>(report.pass_bytes);
  for (const BenchRow& row : report.rows) {
    const std::string what = "batch " + std::to_string(row.what.batch_size) + ", " +
                             std::to_string(row.what.input_len) + " in";
    // The engine takes up to 512 tokens a pass.
    const auto tokens =
        static_cast<double>(std::min<int64_t>(512, row.what.batch_size * row.what.input_len));
    points.push_back({per_byte * tokens, report.flops_per_token * row.prefill_tokens_per_second,
                      false, "prefill, " + what});
    if (row.decode_tokens_per_second > 0) {
      points.push_back({per_byte * static_cast<double>(row.what.batch_size),
                        report.flops_per_token * row.decode_tokens_per_second, true,
                        "decode, " + what});
    }
  }
  const double memory = report.memory_bytes_per_second, peak = report.peak_flops;
  const double knee = peak / memory;
  Range x{per_byte / 2, knee * 2}, y{HUGE_VAL, peak * 2};
  for (const Point& point : points) {
    widen(x, point.intensity / 2);
    widen(x, point.intensity * 2);
    if (point.flops > 0) y.lo = std::min(y.lo, point.flops / 2);
  }
  y.lo = std::min(y.lo, memory * x.lo);
  Chart chart("Roofline", "operations for each byte of weights", "operations per second", x, y);
  chart.ticks(x, [&](double value) { chart.x_tick(value, short_number(value)); });
  chart.ticks(y, [&](double value) { chart.y_tick(value, short_number(value)); });
  chart.path({{chart.x(x.lo), chart.y(memory * x.lo)},
              {chart.x(knee), chart.y(peak)},
              {chart.x(x.hi), chart.y(peak)}},
             "#57606a");
  chart.legend(0, "#57606a",
               fixed(memory / 1e9, 1) + " GB/s read, " + fixed(peak / 1e9, 0) + " GFLOP/s");
  chart.legend(1, kColors[0], "decode");
  chart.legend(2, kColors[1], "prefill");
  for (const Point& point : points) {
    chart.point(chart.x(point.intensity), chart.y(point.flops), kColors[point.is_decode ? 0 : 1],
                point.what + ": " + short_number(point.flops) + "FLOP/s");
  }
  return chart.finish();
}

/// Markdown's lines as HTML: a list, then a table.
std::string body_of(const std::string& markdown) {
  std::string out = "<ul>\n";
  bool in_table = false, is_head = true;
  for (size_t begin = 0; begin < markdown.size();) {
    const size_t end = std::min(markdown.find('\n', begin), markdown.size());
    const std::string line = markdown.substr(begin, end - begin);
    begin = end + 1;
    if (line.starts_with("- ")) out += "<li>" + escaped(line.substr(2)) + "</li>\n";
    if (!line.starts_with("|")) continue;
    if (!in_table) out += "</ul>\n<table>\n";
    in_table = true;
    if (line.starts_with("|---")) {
      is_head = false;
      continue;
    }
    const std::string cell = is_head ? "th" : "td";
    out += "<tr>";
    for (size_t at = 1; at < line.size();) {
      const size_t bar = std::min(line.find('|', at), line.size());
      out += "<" + cell + ">" + escaped(line.substr(at, bar - at)) + "</" + cell + ">";
      at = bar + 1;
    }
    out += "</tr>\n";
  }
  return out + "</table>\n";
}

constexpr const char* kStyle = R"(
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; margin: 2rem auto; max-width: 1340px; padding: 0 1rem; }
h1 { font-size: 1.4rem; } ul { list-style: none; padding: 0; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; } svg { flex: 1 1 560px; max-width: 660px; border: 1px solid #d0d7de; border-radius: 6px; }
svg text { font: 12px system-ui, sans-serif; fill: #1f2328; } svg .title { font-size: 14px; font-weight: 600; }
svg .middle { text-anchor: middle; } svg .end { text-anchor: end; }
svg .grid { stroke: #e6e9ed; } svg .spread { stroke: #8c959f; stroke-width: 1.5; }
table { border-collapse: collapse; margin-top: 1rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #d0d7de; }
)";

}  // namespace

std::string bench_html(const BenchReport& report) {
  const std::string title = "llmctl bench: " + report.model + ", " + report.dtype;
  return "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta "
         "name=\"viewport\" content=\"width=device-width\">\n<title>" +
         escaped(title) + "</title>\n<style>" + kStyle + "</style>\n</head>\n<body>\n<h1>" +
         escaped(title) + "</h1>\n<div class=\"charts\">\n" + latency_chart(report) +
         (report.peak_flops > 0 ? roofline_chart(report) : "") + "</div>\n" +
         body_of(bench_markdown(report)) + "</body>\n</html>\n";
}

}  // namespace llmctl::cli
