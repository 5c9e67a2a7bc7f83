package pager

import (
	"context"
	"slices"
	"testing"

	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// A policy hears of each page that Prefetch names and that is not there, and of the
// first of what WillNeed names.
func TestWhatIsNamedIsAHint(t *testing.T) {
	p := newPager(t, Options{Budget: 1 << 20})
	var heard []int64
	r, err := p.Map(store.NewMemory(256*FrameSize), RegionOptions{
		ReadOnly: true,
		Prefetch: prefetch.Func(func(e prefetch.Event, _ *prefetch.Plan) {
			if e.Kind == prefetch.Hint {
				heard = append(heard, e.Page)
			}
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pin, err := r.Acquire(context.Background(), 9*FrameSize, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer pin.Release()
	r.Prefetch([]int64{-FrameSize, 3 * FrameSize, 9 * FrameSize, 70*FrameSize - 1, 256 * FrameSize}, 2)
	if want := []int64{3, 69, 70}; !slices.Equal(heard, want) {
		t.Errorf("Prefetch: hints of %v, want %v", heard, want)
	}
	heard = nil
	if err := r.Advise(100*FrameSize, 20*FrameSize, WillNeed); err != nil {
		t.Fatal(err)
	}
	if want := []int64{100}; !slices.Equal(heard, want) {
		t.Errorf("WillNeed: hints of %v, want %v", heard, want)
	}
}

// learner is a policy that keeps what it is told.
type learner struct {
	prefetch.Policy
	last prefetch.Feedback
}

func (l *learner) Learn(f prefetch.Feedback) { l.last = f }

// The policy of Advise(Sequential) is not told of what became of its predecessor's
// pages, nor that one, afterwards, of its.
func TestFeedbackIsOfThePolicyItself(t *testing.T) {
	p := newPager(t, Options{Budget: 1 << 20})
	l := &learner{Policy: prefetch.None()}
	r, err := p.Map(store.NewMemory(256*FrameSize), RegionOptions{ReadOnly: true, Prefetch: l})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	a := &r.ahead
	event := func() { r.observe(prefetch.Event{Kind: prefetch.Miss, Page: 200}, true) }
	a.issued.Add(100)
	a.unused.Add(90)
	event()
	own := prefetch.Feedback{Issued: 100, Unused: 90}
	if l.last != own {
		t.Fatalf("the policy is told %+v, want %+v", l.last, own)
	}
	if err := r.Advise(0, 0, Sequential); err != nil {
		t.Fatal(err)
	}
	event()
	if a.told != (prefetch.Feedback{}) {
		t.Errorf("the policy of Sequential is told %+v of what it has not done", a.told)
	}
	a.issued.Add(7)
	a.used.Add(5)
	event()
	if want := (prefetch.Feedback{Issued: 7, Used: 5}); a.told != want {
		t.Errorf("the policy of Sequential is told %+v, want %+v", a.told, want)
	}
	if err := r.Advise(0, 0, Normal); err != nil {
		t.Fatal(err)
	}
	l.last = prefetch.Feedback{}
	event()
	if l.last != (prefetch.Feedback{}) {
		t.Errorf("the first policy is told %+v again", l.last)
	}
	a.issued.Add(1)
	event()
	own.Issued++
	if l.last != own {
		t.Errorf("the first policy is told %+v, want %+v", l.last, own)
	}
}
