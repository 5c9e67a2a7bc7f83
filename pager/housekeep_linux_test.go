package pager

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/store"
)

// A first dirty page wakes a housekeeper that looks at no clock, and none that does;
// a notice wakes either.
func TestWhoWakesTheHousekeeper(t *testing.T) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, c := range []struct {
		how   uint32
		what  string
		by    func(w *pagerWords)
		woken bool
	}{
		{0, "dirty page", (*pagerWords).wakeClock, false},
		{dozing, "dirty page", (*pagerWords).wakeClock, false},
		{asleep, "dirty page", (*pagerWords).wakeClock, true},
		{0, "notice", (*pagerWords).wake, false},
		{dozing, "notice", (*pagerWords).wake, true},
		{asleep, "notice", (*pagerWords).wake, true},
	} {
		w := &pagerWords{wakeFD: int32(fd), sleeping: c.how}
		c.by(w)
		c.by(w)
		var b [8]byte
		n, _ := unix.Read(fd, b[:])
		if woken := n == 8; woken != c.woken || woken && b[0] != 1 {
			t.Errorf("a %s, sleeping %d: signalled %d times", c.what, c.how, b[0])
		}
		if want := c.how; (w.sleeping == 0) != (c.woken || want == 0) {
			t.Errorf("a %s, sleeping %d: sleeping %d afterwards", c.what, c.how, w.sleeping)
		}
	}
}

// While pages become dirty and clean again the housekeeper looks at the clock, and
// nobody has to wake it; when that is over it looks at none any more.
func TestTheHousekeeperDozesBetweenCommits(t *testing.T) {
	needProtection(t)
	p, r, _ := mapMemory(t, 64, Options{Budget: 64 * FrameSize}, store.FaultyOptions{},
		RegionOptions{Durability: Atomic, Journal: JournalOptions{Store: store.NewMemory(8192), Interval: -1}})
	how := func() uint32 { return bare.Load32(&p.w.sleeping) }
	dozed := false
	for tries := 0; tries < 20 && !dozed; tries++ { // the machine may stand still for longer than the lull
		fill(t, r, 1, 1)
		if err := r.Commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2*tick + tick/2) // it has looked when nothing was dirty
		dozed = load64(&p.w.dirty) == 0 && how() == dozing
	}
	if !dozed {
		t.Error("after a commit it looks at no clock, and has to be woken for the next")
	}
	eventually(t, "it looks at none any more", func() bool { return how() == asleep })
}
