package pager

import (
	"context"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager/evict"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// arrivalsRegion is a region in which nothing is read that nobody asks for, larger than its
// budget of so many frames.
func arrivalsRegion(t *testing.T, frames int64, o RegionOptions) (*Pager, *Region) {
	t.Helper()
	o.ReadOnly, o.Prefetch = true, prefetch.None()
	return rawMap(t, Options{Budget: frames * FrameSize}, store.NewMemory(4*frames*FrameSize), o)
}

func acquirePage(r *Region, page int64) error {
	pin, err := r.Acquire(context.Background(), page*FrameSize, 1)
	if err == nil {
		pin.Release()
	}
	return err
}

// Who misses does not wait for somebody who is evicting, as long as there are frames.
func TestMissesDoNotWaitForAnEviction(t *testing.T) {
	p, r := arrivalsRegion(t, 1024, RegionOptions{})
	defer p.Close()
	p.lockEvict()
	within(t, 10*time.Second, "misses while somebody evicts", func() {
		for page := range int64(arrivalsMost - 1) {
			if err := acquirePage(r, page); err != nil {
				t.Error(err)
			}
		}
	})
	p.evictMu.Unlock()
}

// told is a policy that knows what it has been told, in which order.
type told struct {
	evict.Policy
	pages []int64
}

func (t *told) Install(p evict.Page, why evict.Reason) {
	t.pages = append(t.pages, int64(p&(1<<noticePageBits-1)))
	t.Policy.Install(p, why)
}

// The policy hears of all pages, once and in the order in which they came, and of the
// last of them before it is asked for a victim, or told that one is gone.
func TestPoliciesHearOfWhatHasCome(t *testing.T) {
	policy := &told{Policy: evict.NewFIFO()}
	p, r := arrivalsRegion(t, 1024, RegionOptions{Evict: policy})
	defer p.Close()
	const pages = arrivalsSome + 7
	for page := range int64(pages) {
		if err := acquirePage(r, page); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(policy.pages); n < arrivalsSome {
		t.Errorf("the policy has heard of %d pages of %d, though nobody evicts", n, pages)
	}
	if n := p.evictSome(pages); n != pages {
		t.Errorf("%d pages have left, of %d that are there", n, pages)
	}
	for i, page := range policy.pages {
		if page != int64(i) {
			t.Fatalf("it has heard of page %d after %d others", page, i)
		}
	}
	if err := acquirePage(r, 1); err != nil {
		t.Fatal(err)
	}
	if err := r.Advise(0, r.Len(), DontNeed); err != nil {
		t.Fatal(err)
	}
	p.lockEvict()
	defer p.evictMu.Unlock()
	if n := policy.Len(); n != 0 {
		t.Errorf("it knows %d pages, and none is there", n)
	}
}
