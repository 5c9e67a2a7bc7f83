package model

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// op is one kind of operation. run does it once, on a range of its choice, and
// compares; errSkip says that it does not apply to this region.
type op struct {
	name   string
	weight int
	writes bool // needs a writable region
	raw    bool // needs raw access
	run    func(a *actor, r *region) error
}

var errSkip = errors.New("does not apply")

// ops are all operations. Readers are in read_test.go, writers in
// write_test.go, what works on the region or the pager is here.
var ops = []op{
	{"Bytes", 10, false, true, (*actor).bytes},
	{"View", 6, false, false, (*actor).view},
	{"ReadAt", 10, false, false, (*actor).readAt},
	{"Acquire", 8, false, false, (*actor).acquire},
	{"AcquireV", 4, false, false, (*actor).acquireV},
	{"TryAcquire", 4, false, false, (*actor).tryAcquire},
	{"LockEventfd", 4, false, false, (*actor).lockEventfd},
	{"Hold", 2, false, false, (*actor).holdPin},
	{"Prefetch", 2, false, false, (*actor).prefetch},
	{"Advise", 3, false, false, (*actor).advise},
	{"Residency", 1, false, false, (*actor).residency},
	{"SetBudget", 1, false, false, (*actor).setBudget},
	{"Look", 1, false, false, (*actor).properties},
	{"Refused", 1, false, false, (*actor).refused},
	{"Reopen", 1, false, false, (*actor).reopen},
	{"Inject", 2, false, false, (*actor).inject},

	{"WriteAt", 8, true, false, (*actor).writeAt},
	{"WriteAt pages", 4, true, false, (*actor).writePages},
	{"Store", 10, true, true, (*actor).store},
	{"Update", 6, true, true, (*actor).update},
	{"AcquireWrite", 6, true, false, (*actor).acquireWrite},
	{"Sync", 1, true, false, (*actor).sync},
	{"Commit", 2, true, false, (*actor).commit},
	{"SyncRange", 2, true, false, (*actor).syncRange},
	{"SyncEventfd", 1, true, false, (*actor).syncEventfd},
	{"Discard", 1, true, false, (*actor).discard},
	{"Resize", 1, true, false, (*actor).resize},
	{"Copy", 3, true, false, (*actor).copyBetween},
}

// actor is who does operations: one goroutine of a concurrent history, or the
// only one of a sequential one.
type actor struct {
	chooser
	w      *world
	id     int
	buf    []byte
	cursor int64 // of sequential ranges
	step   int
	trace  [40]string // the last operations
	held   *heldPin
	late   error // of a pin that was let go in between
}

// heldPin is a page that stays pinned while its holder does other things.
type heldPin struct {
	r   *region
	pin pager.Pin
	off int64
	n   int64
}

func newActor(c chooser, w *world, id int) *actor {
	return &actor{chooser: c, w: w, id: id}
}

// do runs one operation that applies.
func (a *actor) do() error {
	r := a.w.regions[a.intn(len(a.w.regions), "region")]
	r.size.RLock() // somebody may be closing it to map it anew
	raw := r.Raw() == nil
	r.size.RUnlock()
	applies := func(o *op) bool { return (!o.writes || r.writable) && (!o.raw || raw) }
	total := 0
	for i := range ops {
		if applies(&ops[i]) {
			total += ops[i].weight
		}
	}
	k, o := a.intn(total, "operation"), &ops[0]
	for i := range ops {
		if o = &ops[i]; applies(o) {
			if k < o.weight {
				break
			}
			k -= o.weight
		}
	}
	a.note("%s", o.name)
	err := o.run(a, r)
	if errors.Is(err, errSkip) { // something else, then
		a.note("ReadAt instead of %s", o.name)
		err = a.readAt(r)
	}
	if err != nil {
		return fmt.Errorf("actor %d, step %d, %s on a %s region with pages of %d: %w", a.id, a.step, a.trace[a.step%len(a.trace)], r.kind, r.page, err)
	}
	a.step++
	return nil
}

// note remembers what the actor is about to do.
func (a *actor) note(format string, args ...any) {
	a.trace[a.step%len(a.trace)] = fmt.Sprintf(format, args...)
}

// history is what the actor did last, oldest first.
func (a *actor) history() []string {
	var out []string
	for i := max(0, a.step+1-len(a.trace)); i <= a.step; i++ {
		out = append(out, fmt.Sprintf("%d: %s", i, a.trace[i%len(a.trace)]))
	}
	return out
}

// place picks a range of at most most bytes. The caller holds r.size.
func (a *actor) place(r *region, most int64) (off, n int64) {
	size, page := r.Len(), int64(r.page)
	pages := (size + page - 1) / page
	switch a.intn(4, "locality") {
	case 0: // a hot eighth
		off = int64(a.intn(int(max(pages/8, 1)), "page")) * page
	case 1: // onwards
		off = a.cursor % size / page * page
		a.cursor += page
	default:
		off = int64(a.intn(int(pages), "page")) * page
	}
	switch a.intn(8, "length") {
	case 0, 1, 2:
		n = 1 + int64(a.intn(64, "bytes"))
	case 3, 4:
		n = page
	case 5, 6:
		n = 1 + int64(a.intn(int(page), "bytes"))
	default:
		n = 1 + int64(a.intn(int(min(4*page, 256<<10)), "bytes"))
	}
	switch a.intn(3, "alignment") {
	case 1:
		off += int64(a.intn(int(page), "offset in page"))
	case 2: // across the end of the page
		off += max(page-n/2-1, 0)
	}
	off = min(off, size-1)
	n = min(n, most, size-off)
	a.note("%s [%d, +%d)", a.trace[a.step%len(a.trace)], off, n)
	return off, n
}

// pinnable picks a range that one operation may pin.
func (a *actor) pinnable(r *region) (off, n int64, err error) {
	// A range of n bytes may touch two pages more than n fills.
	most := a.w.pinRoom - 2*int64(r.page)
	if most <= 0 {
		if a.w.spec.least/2 < int64(r.page) {
			return 0, 0, errSkip
		}
		// Room for one page: stay within it.
		off, n = a.place(r, int64(r.page))
		n = min(n, int64(r.page)-off%int64(r.page))
		a.note("%s, first page only", a.trace[a.step%len(a.trace)])
		return off, n, nil
	}
	off, n = a.place(r, most)
	return off, n, nil
}

// scratch is a buffer of n bytes.
func (a *actor) scratch(n int64) []byte {
	if int64(len(a.buf)) < n {
		a.buf = make([]byte, n)
	}
	return a.buf[:n]
}

// context is mostly Background, now and then one that ends early, in which
// case the operation may say so and nothing else.
func (a *actor) context() (ctx context.Context, cancel func(), early bool) {
	if a.intn(32, "early end") != 31 {
		return context.Background(), func() {}, false
	}
	ctx, cancel = context.WithTimeout(context.Background(), time.Duration(a.intn(1000, "µs"))*time.Microsecond)
	return ctx, cancel, true
}

// excused says whether err is only the early end of the context.
func excused(err error, early bool) bool {
	return early && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled))
}

func (a *actor) prefetch(r *region) error {
	r.size.RLock()
	defer r.size.RUnlock()
	offs := make([]int64, 1+a.intn(8, "offsets"))
	for i := range offs {
		offs[i], _ = a.place(r, 1)
	}
	r.Prefetch(offs, 1+int64(a.intn(2*r.page, "bytes")))
	return nil
}

func (a *actor) advise(r *region) error {
	r.size.RLock()
	defer r.size.RUnlock()
	off, n := a.place(r, 1<<20)
	advice := pager.Advice(a.intn(int(pager.Cold)+1, "advice"))
	a.note("%s %d", a.trace[a.step%len(a.trace)], advice)
	return r.Advise(off, n, advice)
}

func (a *actor) residency(r *region) error {
	r.size.RLock()
	defer r.size.RUnlock()
	off, n := a.place(r, 1<<20)
	resident, dirty := r.Residency(off, n)
	// Counted by pages or cut to the range, not more than the pages touched;
	// the two are not taken at one instant.
	page := int64(r.page)
	whole := ((off+n-1)/page - off/page + 1) * page
	if resident < 0 || dirty < 0 || resident > whole || dirty > whole || !r.writable && dirty != 0 {
		return fmt.Errorf("resident %d, dirty %d of %d bytes", resident, dirty, whole)
	}
	return nil
}

func (a *actor) setBudget(*region) error {
	w := a.w
	w.budget.Lock()
	defer w.budget.Unlock()
	steps := int((w.spec.budget - w.spec.least) / pager.FrameSize)
	to := w.spec.least + int64(a.intn(steps+1, "frames"))*pager.FrameSize
	a.note("SetBudget(%d)", to)
	for i, p := range w.pagers {
		err := p.SetBudget(to)
		now := to
		switch {
		case err == nil:
			if s := p.Stats(); s.Resident > to {
				return fmt.Errorf("SetBudget(%d) returned with %d bytes resident", to, s.Resident)
			}
		case errors.Is(err, pager.ErrBudget) || errors.Is(err, pager.ErrBusy):
			now = p.Stats().Budget // pinned pages are in the way
		default:
			return err
		}
		if i == 0 {
			w.now = now
		}
	}
	return nil
}

// holdPin pins one page, or lets go of the page pinned before, after a look at
// whether it stayed.
func (a *actor) holdPin(r *region) error {
	if a.held != nil {
		return a.letGo()
	}
	select {
	case <-a.w.hold:
	default:
		return errSkip
	}
	r.size.RLock()
	defer r.size.RUnlock()
	off, n := a.place(r, int64(r.page))
	n = min(n, int64(r.page)-off%int64(r.page))
	pin, err := r.Acquire(context.Background(), off, n)
	if err != nil {
		a.w.hold <- struct{}{}
		if r.excuses(err) {
			return nil
		}
		return err
	}
	a.held = &heldPin{r, pin, off, n}
	return nil
}

// nobodyHolds waits until no pin is held from operation to operation, and
// keeps it so until the returned function is called: Resize and Discard wait
// for pins, and who holds one could wait for them.
func (a *actor) nobodyHolds() func() {
	if a.w.pinRoom == 0 {
		return func() {}
	}
	if a.held != nil {
		if err := a.letGo(); err != nil {
			a.late = err
		}
	}
	<-a.w.hold
	return func() { a.w.hold <- struct{}{} }
}

func (a *actor) letGo() error {
	h := a.held
	a.held = nil
	defer func() { a.w.hold <- struct{}{} }()
	defer h.pin.Release()
	h.r.size.RLock()
	defer h.r.size.RUnlock()
	defer h.r.lock(false, pager.Range{Off: h.off, Len: h.n})()
	if h.off+h.n > h.r.Len() {
		return nil // truncated meanwhile
	}
	if resident, _ := h.r.Residency(h.off, h.n); resident == 0 {
		return fmt.Errorf("a pinned page at %d left", h.off)
	}
	return fixture.Compare(h.pin.Bytes(), h.r.model[h.off:h.off+h.n], h.off)
}

// finish lets go of what the actor still has.
func (a *actor) finish() error {
	if a.held != nil {
		a.late = errors.Join(a.late, a.letGo())
	}
	return a.late
}
