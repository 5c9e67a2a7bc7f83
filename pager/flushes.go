//go:build linux

package pager

import (
	"slices"
	"sync"
)

// Flushes beside each other
//
// The kernel tells one of several flushes of a descriptor of a write that failed
// (errseq_t): whoever asks first. A flush that ends well right behind it, and
// before the first one has said so here, must not be taken for the proof that all
// is durable. So one that has ended counts when all have that were under way then:
// what these had to tell is known by that time. It does not wait for any that begin
// later, so that there is an end.
type flushes struct {
	mu  sync.Mutex
	now []*oneFlush // under way
}

// oneFlush is one of them.
type oneFlush struct {
	behind []*oneFlush // ended beside it, and wait for it
	others int         // how many it waits for itself
	then   func()
}

// begin is called before a flush is started.
func (l *flushes) begin() *oneFlush {
	f := new(oneFlush)
	l.mu.Lock()
	l.now = append(l.now, f)
	l.mu.Unlock()
	return f
}

// end is called when f has ended and its error, if it has one, is known to
// everybody. then is called when f counts; nil: nobody relies on it.
func (l *flushes) end(f *oneFlush, then func()) {
	var ready []func()
	l.mu.Lock()
	l.now = slices.DeleteFunc(l.now, func(o *oneFlush) bool { return o == f })
	if then != nil {
		f.then, f.others = then, len(l.now)
		for _, o := range l.now {
			o.behind = append(o.behind, f)
		}
		if f.others == 0 {
			ready = append(ready, then)
		}
	}
	for _, o := range f.behind {
		if o.others--; o.others == 0 {
			ready = append(ready, o.then)
		}
	}
	l.mu.Unlock()
	for _, fn := range ready {
		fn()
	}
}
