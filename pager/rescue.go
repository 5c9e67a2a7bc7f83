//go:build linux

package pager

import (
	"sync"
	"syscall"
	"time"
	"unsafe"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/aio"
)

// Loads that nobody takes
//
// Completions are taken from the ring by goroutines, and those need a P. Where
// every P is with goroutines that compute, the reaper has its turn after all of
// them: with 64 at GOMAXPROCS=2 most of a second later. The page need not wait
// for that. The rescuer, one thread of the process that the Go runtime does not
// know, looks every few milliseconds, while reads are under way, at the ring of
// each pager; when completions have been waiting there from one look to the next
// and nobody has taken any, it loads the pages that somebody waits for itself.
// They are mapped then, although their goroutines still wait for a P. So it does
// when who gathers reads (gather.go) has let others run in the meantime and has
// not come back, and with faults of goroutines that are parked in place, when the
// goroutine that starts their reads does not get on.
//
//	miss ── seat, timer ──▶ read ──▶ ring ──▶ reaper: waits for a P ──────▶ lost: settle
//	            │ 7 ms                 ▲ looks, takes nothing
//	            └──▶ rescuer ──────────┴── 4 ms ──▶ take over, read, map ──▶ notice
//
// Who may do what is settled elsewhere, and nothing is added to it:
//
//   - The completion stays the reaper's. The rescuer reads the page anew, which
//     costs one more read, but needs no say over the ring, over buffers or over
//     loads, all of which are guarded by locks that a goroutine without a P may
//     hold at this very moment.
//   - The page is taken over as a fault server does it (state.go): a new generation
//     by one compare-and-swap, so that of the reaper, a fault server and the
//     rescuer one maps it; the others find that it is not theirs any more.
//   - The frame, the pins and the waiters come with the word. Waiters are told by
//     the housekeeper (noticeRescued) or by the reaper when it finds its load
//     lost, whoever comes first.
//   - If the page cannot be read, the housekeeper reads it once more in the
//     ordinary way and tells its waiters what comes of that.
//   - A region does not close while it is in desc.users, nor a pager, with its
//     ring, while it is in rescuer.at (a hazard pointer).
//
// What was read ahead has no seat: nobody waits for it. Who is the first to do so
// takes one for his page (join). A thread that is blocked needs none: it takes the
// page over by itself (serveRead), ahead or not, and whether the read ends or not.
//
// A store that is merely slow is left alone: then the ring is empty, or
// completions are being taken. That is also why there is no rescue on an engine
// without a ring, nor of a page that takes Go code to fill. While reads are under
// way, and none begins or ends, the looks are further and further apart, so that
// what a read has to wait for one is less than what it has taken; the next miss
// has its look as soon as any.
//
// While reads come faster than rescueFirst, this costs a miss two atomic
// operations for its seat; otherwise one timerfd_settime in addition. No thread
// is woken for a miss.
const (
	rescueFirst = int64(7 * time.Millisecond) // after a miss, and between looks
	rescueAgain = int64(4 * time.Millisecond) // when completions are waiting
	rescueRest  = 8 * rescueFirst             // at most, while nothing moves

	// Pages mapped in one look, of each sort. Where a crowd stands still,
	// it is for want of turns and not of pages, and one that reads them one after
	// another without a P would only take the processor from it.
	rescueMost = 16

	maxRescued = 256 // pagers that are looked at

	seatCount    = 1024
	seatRunBits  = 8
	seatPageBits = noticePageBits
)

var _ = [1]struct{}{}[maxRun>>frameShift-1<<seatRunBits] // a run fits its bits
var _ = [1]struct{}{}[maxDescs-1<<(64-seatRunBits-seatPageBits)]

// rescuer is the thread's. pagers are the addresses of their words.
var rescuer = struct {
	armed uint32 // 1: the timer runs, or the thread is looking; or there is none
	timer int32
	at    uint64 // the pager that is being looked at

	started     uint64 // parked goroutines whose reads were started, or which needed none
	lastStarted uint64 // at the last look; the thread's own, like …
	lastParked  uint64 // … how many were parked then

	looks uint64 // how often it has looked around

	pagers [maxRescued]uint64

	once sync.Once
	mu   sync.Mutex // of the list, for ordinary code
}{armed: 1}

// rescueWords are the part of pagerWords that is the rescuer's.
type rescueWords struct {
	ring     aio.Ring
	inflight *uint32           // Pager.inflight
	led      *uint32           // Pager.gather.led
	turn     *uint32           // Pager.gather.turn
	seatNext uint64            // seats taken so far
	seats    [seatCount]uint64 // what is waited for: descriptor | first page | pages-1; see Region.sit
	rescued  uint64            // pages
	_        [64]byte          // from here on the thread's own

	last sight
	upTo uint64 // seats taken then
}

// sight is what the rescuer sees of a pager.
type sight struct {
	waits, head uint32 // 1: completions wait to be taken, behind so many
	led, turn   uint32 // 1: reads are being gathered, for the turn-th time
	inflight    uint32 // reads under way
}

//go:nosplit
//go:norace
//go:nocheckptr
func (w *pagerWords) see(s *sight) {
	head, waits := w.ring.Look()
	s.waits, s.head = 0, head
	if waits {
		s.waits = 1
	}
	s.turn = bare.Load32(w.turn)
	s.led = bare.Load32(w.led)
	s.inflight = bare.Load32(w.inflight)
}

// stuck: nobody has got on between two sights.
//
//go:nosplit
//go:norace
//go:nocheckptr
func stuck(a, b *sight) bool {
	return a.waits != 0 && b.waits != 0 && a.head == b.head || a.led != 0 && b.led != 0 && a.turn == b.turn
}

// startRescuer starts the thread, once. Without it pages come when there is a P.
func startRescuer(log *zap.Logger) {
	rescuer.once.Do(func() {
		fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
		if err == nil {
			rescuer.timer = int32(fd)
			if err = coro.StartThread(rescue); err != nil {
				unix.Close(fd)
				rescuer.timer = -1
			}
		}
		if err != nil {
			log.Info("pages whose reads are done wait for a P to be mapped", zap.Error(err))
			return
		}
		bare.Store32(&rescuer.armed, 0)
	})
}

// rescueFrom has the rescuer look at p, if there is room on its list.
func (p *Pager) rescueFrom() {
	rescuer.mu.Lock()
	defer rescuer.mu.Unlock()
	for i := range rescuer.pagers {
		if bare.Load64(&rescuer.pagers[i]) == 0 {
			bare.Store64(&rescuer.pagers[i], uint64(uintptr(unsafe.Pointer(p.w))))
			return
		}
	}
}

// rescueNoMore returns when the rescuer does not look at p any more.
func (p *Pager) rescueNoMore() {
	self := uint64(uintptr(unsafe.Pointer(p.w)))
	rescuer.mu.Lock()
	for i := range rescuer.pagers {
		bare.Cas64(&rescuer.pagers[i], self, 0)
	}
	rescuer.mu.Unlock()
	p.drain(func() bool { return bare.Load64(&rescuer.at) != self })
}

// sit notes a demand load where the rescuer finds it. Seats are given out in a
// circle: a load that is overtaken by seatCount others just loses its own.
func (l *load) sit() { l.seat = l.r.sit(l.seat, l.first, len(l.gens)) }

// rise gives the seat back.
func (l *load) rise() { l.r.rise(l.seat, l.first, len(l.gens)) }

// sit takes a seat (or keeps the one that is not 0) for n pages that somebody waits
// for.
func (r *Region) sit(seat, first uint64, n int) uint64 {
	w := r.p.w
	if seat == 0 {
		seat = bare.Add64(&w.seatNext, 1)
	}
	bare.Store64(&w.seats[seat%seatCount], seatWord(r.d, first, n))
	return seat
}

func (r *Region) rise(seat, first uint64, n int) {
	if seat != 0 {
		bare.Cas64(&r.p.w.seats[seat%seatCount], seatWord(r.d, first, n), 0)
	}
}

func seatWord(d *desc, first uint64, n int) uint64 {
	return uint64(d.index)<<(seatRunBits+seatPageBits) | first<<seatRunBits | uint64(n-1)
}

// rescueLater has the rescuer look if what is about to be read is not there
// soon. (It is nosplit so that whoever has set the flag is not preempted before
// he has set the timer.)
//
//go:nosplit
//go:norace
//go:nocheckptr
func rescueLater() {
	if bare.Load32(&rescuer.armed) == 0 && bare.Cas32(&rescuer.armed, 0, 1) {
		bare.Syscall(unix.SYS_TIMERFD_SETTIME, uintptr(rescuer.timer), 0, uintptr(unsafe.Pointer(&rescueTime)), 0, 0, 0)
	}
}

var rescueTime = [4]int64{3: rescueFirst} // an itimerspec: once

var restTime [4]int64 // the same, the thread's own

// Called through variables: see cleanVia.
var (
	lookVia   = (*pagerWords).look
	rescueVia = rescueLoad
	parkedVia = rescueParked
	tightVia  = (*pagerWords).cleanTight
)

// rescue is the thread's life.
//
//go:nosplit
//go:norace
//go:nocheckptr
func rescue() {
	rest := rescueFirst
	for {
		bare.Syscall(syscall.SYS_READ, uintptr(rescuer.timer), uintptr(unsafe.Pointer(&rescueTicks)), 8, 0, 0, 0)
		for {
			state := lookAround()
			if state <= ringStill {
				if state == ringStill {
					rest = min(2*rest, rescueRest)
					restTime[3] = rest
					bare.Syscall(unix.SYS_TIMERFD_SETTIME, uintptr(rescuer.timer), 0, uintptr(unsafe.Pointer(&restTime)), 0, 0, 0)
				}
				// A miss that saw the flag before it was cleared is seen now.
				bare.Store32(&rescuer.armed, 0)
				if state = lookAround(); state <= ringStill || !bare.Cas32(&rescuer.armed, 0, 1) {
					break // the timer runs if there is something to look for: ours, or the one of a miss
				}
			}
			pause := rescueFirst
			if state == ringWaits {
				pause = rescueAgain
			}
			rest = rescueFirst
			bare.FutexWait(&napWord, 0, pause)
		}
	}
}

var rescueTicks uint64 // what the timer says, which nobody needs

const (
	ringIdle  = iota // nothing is under way
	ringStill        // reads are, the same as at the last look
	ringBusy         // reads are
	ringWaits        // they may be stuck
)

// lookAround looks at every pager. The result is the most urgent state.
//
//go:nosplit
//go:norace
//go:nocheckptr
func lookAround() (state int) {
	bare.Add64(&rescuer.looks, 1)
	state = lookAtParked()
	for i := uintptr(0); i < maxRescued; i++ {
		slot := (*uint64)(unsafe.Add(unsafe.Pointer(&rescuer.pagers), i*8))
		a := bare.Load64(slot)
		if a == 0 {
			continue
		}
		bare.Store64(&rescuer.at, a)
		if bare.Load64(slot) == a { // else it may be closed already
			state = max(state, lookVia((*pagerWords)(bare.Ptr(uintptr(a)))))
		}
		bare.Store64(&rescuer.at, 0)
	}
	return state
}

// lookAtParked loads what parked goroutines need whose reads should have been
// started long since.
//
//go:nosplit
//go:norace
//go:nocheckptr
func lookAtParked() int {
	parked, started := coro.ParkedSoFar(), bare.Load64(&rescuer.started)
	if parked == started {
		rescuer.lastParked, rescuer.lastStarted = parked, started
		return ringIdle
	}
	if started == rescuer.lastStarted {
		n := started + 1
		if parked-started > parkedKept {
			n = parked - parkedKept + 1
		}
		for left := rescueMost; n <= rescuer.lastParked && left > 0 && bare.Load64(&rescuer.started) == started; n++ {
			left -= parkedVia(coro.ParkedAt(n))
		}
	}
	rescuer.lastParked, rescuer.lastStarted = parked, started
	return ringWaits
}

const parkedKept = 1000 // addresses that coro remembers, a few of which may be written anew at this moment

// rescueParked loads the page at addr if it is missing and there is a frame for
// it, and returns how many pages it has loaded: of the ordinary frames, for there are threads that have nothing but the last.
//
//go:nosplit
//go:norace
//go:nocheckptr
func rescueParked(addr uintptr) (loaded int) {
	d := enterServer(addr)
	if d == nil {
		return 0
	}
	page := uint64(addr-d.base) >> d.shift
	if pw, v := d.look(page); bare.Load32(&d.flags)&descRaw != 0 && !d.past(page) && (pw == nil || v&stateMask == stMissing) && d.words.takeFrames(d.framesPerPage()) {
		if pw, gen, got := d.claim(page, 0); got != claimed {
			d.words.giveFrames(d.framesPerPage())
		} else if fillVia(d, pw, page, gen, noticeLoaded) == 0 {
			bare.Add64(&d.words.rescued, 1)
			d.words.wake() // frames are not short, nor does anybody wait: else the policy would not hear of it
			loaded = 1
		}
	}
	d.leave()
	return loaded
}

// look looks at one pager, and rescues its loads if nobody has got on with them
// since the last look although there was something to do.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (w *pagerWords) look() int {
	if w.tight() && load64(&w.dirty) > 0 {
		tightVia(w)
	}
	now := bare.Load64(&w.seatNext)
	var s sight
	w.see(&s)
	if stuck(&s, &w.last) {
		// Oldest first, those that sat there at the last look.
		at := uint64(1)
		if now > seatCount {
			at = now - seatCount + 1
		}
		for left := rescueMost; at <= w.upTo && left > 0; at++ {
			v := bare.Load64((*uint64)(unsafe.Add(unsafe.Pointer(&w.seats), at%seatCount*8)))
			if v == 0 {
				continue
			}
			left -= rescueVia(w, v)
			if w.see(&s); !stuck(&s, &w.last) {
				break // somebody does after all
			}
		}
	}
	still := s == w.last && now == w.upTo
	w.last, w.upTo = s, now
	switch {
	case s.waits|s.led != 0:
		return ringWaits
	case s.inflight == 0:
		return ringIdle
	case still:
		return ringStill
	}
	return ringBusy
}

// rescueLoad loads the pages of a seat that are still on their way and that
// somebody waits for, and returns how many those were.
//
//go:nosplit
//go:norace
//go:nocheckptr
func rescueLoad(w *pagerWords, seat uint64) (loaded int) {
	d := enterDesc(uint32(seat>>(seatRunBits+seatPageBits)), w)
	if d == nil {
		return 0
	}
	page := seat >> seatRunBits & (1<<seatPageBits - 1)
	end := page + seat&(1<<seatRunBits-1) + 1
	for ; bare.Load32(&d.flags)&descRaw != 0 && page < end && page < d.pages && !d.past(page); page++ {
		pw, v := d.look(page)
		if pw == nil || v&stateMask != stLoading || v&flagWaited == 0 {
			continue
		}
		n := v&^genMask | newGen()
		if bare.Cas64(pw, v, n) {
			fillVia(d, pw, page, uint32(n>>32), noticeRescued)
			loaded++
		}
	}
	d.leave()
	return loaded
}
