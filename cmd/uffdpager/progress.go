package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// progress is one line on a terminal, written over and over. Where standard
// error is no terminal it writes nothing.
type progress struct {
	mu    sync.Mutex
	w     io.Writer
	width func() int // columns; nil: no terminal
	shown int        // columns in use
	last  time.Time  // of sometimes
}

// unhurried is how long a line of sometimes stays at least.
const unhurried = 100 * time.Millisecond

func newProgress(w io.Writer) *progress {
	p := &progress{w: w}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.width = func() int {
			if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 0 {
				return n
			}
			return 80
		}
	}
	return p
}

// live says whether anyone is watching.
func (p *progress) live() bool { return p.width != nil }

// show replaces the line.
func (p *progress) show(format string, args ...any) {
	if !p.live() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	line := []rune(fmt.Sprintf(format, args...))
	// The last column stays free: writing there may wrap the line.
	line = line[:min(len(line), max(p.width()-1, 0))]
	fmt.Fprintf(p.w, "\r%s%s", string(line), strings.Repeat(" ", max(p.shown-len(line), 0)))
	p.shown = len(line)
}

// sometimes is show for what changes faster than anyone reads: most calls do
// nothing.
func (p *progress) sometimes(format string, args ...any) {
	if !p.live() {
		return
	}
	p.mu.Lock()
	now := time.Now()
	due := now.Sub(p.last) >= unhurried
	if due {
		p.last = now
	}
	p.mu.Unlock()
	if due {
		p.show(format, args...)
	}
}

// clear takes the line away, so that something else can be written.
func (p *progress) clear() {
	if !p.live() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown > 0 {
		fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", p.shown))
		p.shown = 0
	}
}
