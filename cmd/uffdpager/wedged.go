package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/uffdpager/uffdpager/pager"
)

// wedgeLimit is how old something must be to be named.
const wedgeLimit = 10 * time.Second

// wedgedShown is how many of the things that stood still are named.
const wedgedShown = 8

// wedged keeps what the pager has said does not end. The listener only notes
// it; who watches the work prints it.
type wedged struct {
	mu    sync.Mutex
	count int64
	named []string
	told  int // of named, those printed
}

// note is the pager's listener.
func (w *wedged) note(x pager.Wedge) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count++
	if len(w.named) < wedgedShown {
		w.named = append(w.named, x.String())
	}
}

// fresh are those that were noted since the last call.
func (w *wedged) fresh() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.named[w.told:]
	w.told = len(w.named)
	return l
}

// print says at once what stands still: there may never be a report.
func (w *wedged) print(show *progress, to io.Writer) {
	for _, s := range w.fresh() {
		show.clear()
		fmt.Fprintf(to, "uffdpager: does not end: %s\n", s)
	}
}

// fill puts them into the report.
func (w *wedged) fill(r *report) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.Wedged, r.WedgedBy = w.count, append([]string(nil), w.named...)
}
