"""The looks of a report: six colours that the colour-blind tell apart, in light and in dark, on screen and on paper."""

__all__ = ["DRAWING_STYLE", "STYLE"]

_COLOURS = """
:root {
  --paper: #ffffff; --panel: #f7f8f9; --ink: #1c2126; --soft: #5a646e; --rule: #dde1e5; --grid: #e8ebee;
  --c0: #0b62a8; --c1: #cf5508; --c2: #12805c; --c3: #8a4fa3; --c4: #9a7000; --c5: #6b7580;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181b; --panel: #1c2024; --ink: #e6e9ec; --soft: #9aa5af; --rule: #333a41; --grid: #2a3036;
    --c0: #6cb2f0; --c1: #f39a55; --c2: #55c79f; --c3: #cb9fe2; --c4: #dcb84d; --c5: #a3adb7;
  }
}
"""

_DRAWING = """\
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--ink); font-size: 12px; }
svg .tick, svg .axis-name { fill: var(--soft); }
svg .end { text-anchor: end; }
svg .mid { text-anchor: middle; }
svg .grid { stroke: var(--grid); }
svg .axis { stroke: var(--soft); }
svg .line { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
svg .dashed { stroke-dasharray: 6 5; }
svg .faint { stroke-width: 1.1; opacity: .45; }
svg .whisker { stroke-width: 2.2; opacity: .55; }
svg .band { opacity: .16; stroke: none; }
svg .bar { fill: var(--c0); }
svg .s0 { stroke: var(--c0); } svg .dot.s0, svg .f0 { fill: var(--c0); }
svg .s1 { stroke: var(--c1); } svg .dot.s1, svg .f1 { fill: var(--c1); }
svg .s2 { stroke: var(--c2); } svg .dot.s2, svg .f2 { fill: var(--c2); }
svg .s3 { stroke: var(--c3); } svg .dot.s3, svg .f3 { fill: var(--c3); }
svg .s4 { stroke: var(--c4); } svg .dot.s4, svg .f4 { fill: var(--c4); }
svg .s5 { stroke: var(--c5); } svg .dot.s5, svg .f5 { fill: var(--c5); }
svg .dot { stroke: none; }
"""

STYLE = (
    _COLOURS
    + """\
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 Inter, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 40px 28px 64px; }
header { margin-bottom: 24px; }
.kind { margin: 0; color: var(--soft); font-size: 13px; letter-spacing: .08em; text-transform: uppercase; }
h1 { margin: 2px 0 4px; font-size: 32px; line-height: 1.2; font-weight: 650; overflow-wrap: anywhere; }
.lead { margin: 0; color: var(--soft); overflow-wrap: anywhere; }
h2 { margin: 48px 0 16px; padding-top: 16px; border-top: 1px solid var(--rule); font-size: 20px; font-weight: 650; }
h3 { margin: 0 0 2px; font-size: 15px; font-weight: 650; }
p { margin: 0 0 12px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px; }
.tile { display: flex; flex-direction: column; padding: 14px 16px; background: var(--panel); border-radius: 8px; }
.tile .what, .tile .note { color: var(--soft); font-size: 13px; line-height: 1.35; }
.tile .value { margin: 2px 0 4px; font-size: 28px; line-height: 1.2; font-weight: 650; }
.tile .value, td, .tick { font-variant-numeric: tabular-nums; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); gap: 32px 40px; }
.figures.wide { display: block; max-width: 860px; margin-top: 32px; }
.figures > .figures { display: block; }
figure { margin: 0; break-inside: avoid; }
figure p { color: var(--soft); font-size: 13px; line-height: 1.45; min-height: 2.9em; }
"""
    + _DRAWING
    + """\
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 13.5px; line-height: 1.4; }
th, td { padding: 6px 12px 6px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
td { overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
td:first-child { min-width: 12em; }
.examples h3, .apart, details { margin-top: 28px; }
.small { margin-top: 8px; color: var(--soft); font-size: 13px; }
summary { cursor: pointer; color: var(--soft); }
.settings td:first-child { color: var(--soft); white-space: nowrap; }
code { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
footer { margin-top: 48px; color: var(--soft); font-size: 13px; }
@media print { main { max-width: none; padding: 0; } details { display: none; } }
"""
)

DRAWING_STYLE = (
    _COLOURS
    + _DRAWING
    + """\
svg { background: var(--paper); font-family: -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
"""
)
"""Of a drawing that stands alone, without a page around it."""
