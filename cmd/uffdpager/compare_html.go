package main

import (
	"fmt"
	"html"
	"io"
	"math"
	"slices"
	"strings"
)

// writeHTML prints the comparison as one page that needs nothing else: no
// scripts, no fonts, no network. It follows the reader's choice of light or dark.
func (c *comparison) writeHTML(w io.Writer) error {
	var b strings.Builder
	b.WriteString(`<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">`)
	fmt.Fprintf(&b, "<title>uffdpager compare: %s</title><style>%s</style></head><body><main>\n", html.EscapeString(string(c.Workload)), pageStyle)
	b.WriteString("<h1>uffdpager compare</h1>\n")
	for _, line := range c.title() {
		fmt.Fprintf(&b, "<p>%s</p>\n", html.EscapeString(line))
	}
	c.writeKey(&b)
	for _, p := range c.plots() {
		p.write(&b)
	}
	fmt.Fprintf(&b, "<h2>Speed</h2>\n")
	c.writeHTMLTable(&b, speedColumns)
	fmt.Fprintf(&b, "<h2>Per miss, and what the process took</h2>\n")
	c.writeHTMLTable(&b, costColumns)
	b.WriteString("<ul class=small>\n")
	for _, line := range append(slices.Clone(legend[1:]), "a cell shows the median over the rounds, and the range when it is pointed at") {
		fmt.Fprintf(&b, "<li>%s</li>\n", html.EscapeString(line))
	}
	for _, r := range c.Rows {
		for _, s := range slices.Concat(r.Errors, r.Notes) {
			fmt.Fprintf(&b, "<li>%s: %s</li>\n", html.EscapeString(r.Name), html.EscapeString(s))
		}
	}
	for _, s := range c.Notes {
		fmt.Fprintf(&b, "<li>%s</li>\n", html.EscapeString(s))
	}
	b.WriteString("</ul></main></body></html>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// pageGroups is the order of the colours.
var pageGroups = []string{groupPager, groupMmap, groupPread, groupPeer, groupDevice}

const pageStyle = `
:root{color-scheme:light dark;--bg:#fcfcfb;--fg:#1d1d1f;--dim:#6b6b70;--line:#dcdcd8;
--g0:#1a66c2;--g1:#c2571a;--g2:#7a5cb8;--g3:#a8326e;--g4:#6f7a80}
@media(prefers-color-scheme:dark){:root{--bg:#161719;--fg:#e8e8e6;--dim:#9a9aa0;--line:#35373b;
--g0:#5ea2f2;--g1:#f0915a;--g2:#b49bec;--g3:#ea7fb3;--g4:#9aa6ad}}
body{background:var(--bg);color:var(--fg);font:15px/1.45 system-ui,sans-serif;margin:0}
main{max-width:1080px;margin:0 auto;padding:1.5rem}
h1{font-size:1.5rem;margin:0 0 .5rem}h2{font-size:1.1rem;margin:2rem 0 .4rem}p{margin:.15rem 0;color:var(--dim)}
.key{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;margin-top:1rem}.key i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.45em}
.scroll{overflow-x:auto}svg{display:block;width:100%;min-width:720px;height:auto}
svg text{font:12px system-ui,sans-serif;fill:var(--fg);paint-order:stroke;stroke:var(--bg);stroke-width:3px}svg .dim{fill:var(--dim)}
svg .grid{stroke:var(--line);stroke-width:1}svg .whisker{stroke:var(--fg);stroke-width:1.2;opacity:.65}svg .ref{stroke:var(--g4);stroke-width:1.5;stroke-dasharray:4 3}
.b0{fill:var(--g0);background:var(--g0)}.b1{fill:var(--g1);background:var(--g1)}.b2{fill:var(--g2);background:var(--g2)}.b3{fill:var(--g3);background:var(--g3)}.b4{fill:var(--g4);background:var(--g4)}
.s0{stroke:var(--g0)}.s1{stroke:var(--g1)}.s2{stroke:var(--g2)}.s3{stroke:var(--g3)}.s4{stroke:var(--g4)}
table{border-collapse:collapse;font-size:13px;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.22rem .55rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}th:first-child,td:first-child{text-align:left}
th{color:var(--dim);font-weight:500}td.failed{text-align:left;color:var(--dim)}.small{font-size:13px;color:var(--dim);padding-left:1.1rem}
`

func (r *rowReport) colour() int { return max(slices.Index(pageGroups, r.Group), 0) }

func (c *comparison) writeKey(b *strings.Builder) {
	b.WriteString(`<div class=key>`)
	for i, g := range pageGroups {
		if slices.ContainsFunc(c.Rows, func(r *rowReport) bool { return r.Group == g }) {
			fmt.Fprintf(b, `<span><i class=b%d></i>%s</span>`, i, html.EscapeString(g))
		}
	}
	b.WriteString("</div>\n")
}

func (c *comparison) writeHTMLTable(b *strings.Builder, columns []column) {
	b.WriteString("<div class=scroll><table><tr><th></th>")
	for _, col := range columns {
		fmt.Fprintf(b, "<th>%s</th>", html.EscapeString(col.head))
	}
	b.WriteString("</tr>\n")
	for _, r := range c.Rows {
		fmt.Fprintf(b, `<tr><td title="%s">%s</td>`, html.EscapeString(r.What), html.EscapeString(r.Name+r.mark()))
		if r.Turns == 0 {
			fmt.Fprintf(b, `<td class=failed colspan=%d>failed: see below</td>`, len(columns))
		} else {
			for _, col := range columns {
				median, spread := r.cell(col)
				fmt.Fprintf(b, `<td title="%s">%s</td>`, html.EscapeString(spread), html.EscapeString(median))
			}
		}
		b.WriteString("</tr>\n")
	}
	b.WriteString("</table></div>\n")
}

// plot is a chart of one line for each row.
type plot struct {
	title string
	scale scale
	lines []plotLine
	ref   float64 // a value all are to be compared with; 0: none
}

// plotLine is a bar from the left to bar, or dots; whiskers reach from lo to hi.
type plotLine struct {
	name, what string
	colour     int
	bar        float64
	dots       []float64 // instead of a bar
	lo, hi     float64
	label      string
}

func (c *comparison) plots() []plot {
	bars := func(title, name string, show func(float64) string, logarithmic bool) plot {
		p := plot{title: title}
		var all []float64
		for _, r := range c.Rows {
			f, ok := r.Figures[name]
			if !ok || f.Median <= 0 {
				continue
			}
			l := plotLine{name: r.Name + r.mark(), what: r.What, colour: r.colour(), lo: f.Min, hi: f.Max, label: show(f.Median)}
			if logarithmic {
				l.dots = []float64{f.Median} // the length of a bar would mean nothing
			} else {
				l.bar = f.Median
			}
			all = append(all, f.Median, f.Min, f.Max)
			p.lines = append(p.lines, l)
		}
		p.scale = newScale(all, logarithmic, show)
		return p
	}
	ops := bars("Ops of 4 KiB per second, hits included", mOps, showCount, false)
	speed := []plot{bars("Misses per second", mMisses, showCount, false), ops}
	cpu := bars("Processor time of the whole process per miss (logarithmic)", mCPU, showMicros, true)
	if c.Workload.progress() == mOps { // where reading ahead is compared, misses say nothing
		speed = []plot{ops}
		cpu = bars("Processor time of the whole process per op (logarithmic)", mCPUOp, showMicros, true)
	}
	speed[0].title += " (dashed: the bare device)"
	for _, r := range c.Rows {
		if r.Name == c.Workload.reference() {
			speed[0].ref = r.Figures[c.Workload.progress()].Median
		}
	}
	latency := plot{title: "Latency of an op: p50, p99, max (logarithmic)"}
	var all []float64
	for _, r := range c.Rows {
		a, b, m := r.Figures[mP50].Median, r.Figures[mP99].Median, r.Figures[mMax].Median
		if a <= 0 || b <= 0 || m <= 0 {
			continue
		}
		all = append(all, a, b, m)
		latency.lines = append(latency.lines, plotLine{
			name: r.Name + r.mark(), what: r.What, colour: r.colour(), dots: []float64{a, b, m}, lo: a, hi: m,
			label: showMicros(a) + " · " + showMicros(b) + " · " + showMicros(m),
		})
	}
	latency.scale = newScale(all, true, showMicros)
	plots := append(speed, latency, cpu,
		bars("Ticks per second of a 200 µs ticker beside the work", mTicks, showCount, false),
		bars("Bytes read from the device per useful byte (logarithmic)", mReadAmp, showRatio, true))
	return slices.DeleteFunc(plots, func(p plot) bool { return len(p.lines) == 0 })
}

// scale maps values onto 0 … 1.
type scale struct {
	logarithmic bool
	from, to    float64
	ticks       []float64
	show        func(float64) string
}

// newScale is a scale that has room for all values.
func newScale(values []float64, logarithmic bool, show func(float64) string) scale {
	s := scale{logarithmic: logarithmic, to: 1, show: show}
	values = slices.DeleteFunc(slices.Clone(values), func(v float64) bool { return !(v > 0) || math.IsInf(v, 0) })
	if len(values) == 0 {
		values = []float64{1}
	}
	low, high := slices.Min(values), slices.Max(values)
	if logarithmic {
		s.from = math.Pow(10, math.Floor(math.Log10(low)))
		s.to = math.Pow(10, math.Ceil(math.Log10(high)))
		if s.to <= s.from {
			s.to = s.from * 10
		}
		for t := s.from; t <= s.to*1.001; t *= 10 {
			s.ticks = append(s.ticks, t)
		}
		return s
	}
	// Four to eight steps of 1, 2 or 5 times a power of ten.
	step := math.Pow(10, math.Floor(math.Log10(high/4)))
	for _, f := range []float64{5, 2} {
		if high/(step*f) >= 4 {
			step *= f
			break
		}
	}
	s.to = math.Ceil(high/step) * step
	for i := 0; float64(i)*step <= s.to*1.001; i++ {
		s.ticks = append(s.ticks, float64(i)*step)
	}
	return s
}

func (s scale) at(v float64) float64 {
	if s.logarithmic {
		v = math.Log(max(v, s.from)/s.from) / math.Log(s.to/s.from)
	} else {
		v = (v - s.from) / (s.to - s.from)
	}
	return min(max(v, 0), 1)
}

// The measures of a plot, in its own units.
const (
	plotLeft, plotWide, plotRight = 170, 640, 210
	plotRow, plotTop, plotFoot    = 22, 8, 26
)

func (p plot) write(b *strings.Builder) {
	height := plotTop + len(p.lines)*plotRow
	fmt.Fprintf(b, "<h2>%s</h2>\n<div class=scroll><svg viewBox=\"0 0 %d %d\" role=img aria-label=\"%s\">\n",
		html.EscapeString(p.title), plotLeft+plotWide+plotRight, height+plotFoot, html.EscapeString(p.title))
	x := func(v float64) float64 { return plotLeft + plotWide*p.scale.at(v) }
	for _, t := range p.scale.ticks {
		fmt.Fprintf(b, `<line class=grid x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>`, x(t), x(t), plotTop, height+4)
		fmt.Fprintf(b, `<text class=dim x="%.1f" y="%d" text-anchor=middle>%s</text>`+"\n", x(t), height+18, html.EscapeString(p.scale.show(t)))
	}
	if p.ref > 0 {
		fmt.Fprintf(b, `<line class=ref x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>`, x(p.ref), x(p.ref), plotTop, height)
	}
	for i, l := range p.lines {
		y := plotTop + i*plotRow
		mid := float64(y) + plotRow/2
		fmt.Fprintf(b, `<g><title>%s: %s</title><text x="%d" y="%.1f" text-anchor=end>%s</text>`,
			html.EscapeString(l.what), html.EscapeString(l.label), plotLeft-8, mid+4, html.EscapeString(l.name))
		end := max(x(l.hi), x(l.bar))
		if l.dots == nil {
			fmt.Fprintf(b, `<rect class=b%d x="%d" y="%d" width="%.1f" height="%d" rx="2"/>`, l.colour, plotLeft, y+4, max(x(l.bar)-plotLeft, 1), plotRow-8)
			if l.hi > l.lo {
				fmt.Fprintf(b, `<path class=whisker fill=none d="M%.1f %.1fH%.1fM%.1f %.1fv6M%.1f %.1fv6"/>`, x(l.lo), mid, x(l.hi), x(l.lo), mid-3, x(l.hi), mid-3)
			}
		} else {
			fmt.Fprintf(b, `<line class=s%d stroke-width="2" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`, l.colour, x(l.lo), x(l.hi), mid, mid)
			for _, d := range l.dots {
				fmt.Fprintf(b, `<circle class=b%d cx="%.1f" cy="%.1f" r="4.5"/>`, l.colour, x(d), mid)
			}
		}
		fmt.Fprintf(b, `<text class=dim x="%.1f" y="%.1f">%s</text></g>`+"\n", end+10, mid+4, html.EscapeString(l.label))
	}
	b.WriteString("</svg></div>\n")
}
