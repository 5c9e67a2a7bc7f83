//go:build linux

package pager

import (
	"runtime"
	"syscall"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
)

// One fault
//
// decide runs in the signal handler of the thread that faulted. It resolves
// what needs no I/O (a first write to a clean page), sends away what will
// never work (closed, out of range, read-only), and lets the rest wait: parked
// in place if possible, else as a blocked thread whose page is loaded by
// serve, on a fault server. Neither has a P, takes a lock or allocates.

// Reasons of our own for a fault that is delivered, beside errnos.
const (
	errnoClosed   = 1<<20 + iota // the region is closed
	errnoRange                   // past the end of the region
	errnoReadOnly                // a write to a read-only region
	errnoTable                   // no page word left
	errnoShrunk                  // the store is shorter than it was
	errnoNoRoom                  // nothing can be written to make room for a dirty page
	errnoSum                     // the page is not what its checksum says
	errnoNoted                   // see Region.noteFault: errnoNoted + slot
)

//go:nosplit
//go:norace
//go:nocheckptr
func decide(f *coro.Fault) coro.Verdict {
	d := descOf(f.Addr)
	if d == nil || bare.Load32(&d.state) != descLive {
		f.Errno = errnoClosed
		return coro.Deliver
	}
	off := uint64(f.Addr - d.base)
	if off >= bare.Load64(&d.length) {
		f.Errno = errnoRange
		return coro.Deliver
	}
	flags := bare.Load32(&d.flags)
	if f.Access != coro.Read && flags&descReadOnly != 0 {
		f.Errno = errnoReadOnly
		return coro.Deliver
	}
	page := off >> d.shift
	if f.Access == coro.WriteProtected {
		return decideWrite(f, d, page, flags)
	}
	pw, w := d.look(page)
	if pw != nil {
		if present(w) {
			return coro.Retry // it came while we got here
		}
		if bounded(w) {
			relax(64)
			return coro.Retry
		}
	}
	return waitVerdict(f, flags)
}

//go:nosplit
//go:norace
func waitVerdict(f *coro.Fault, flags uint32) coro.Verdict {
	if flags&descRestart != 0 {
		f.Errno = coro.ErrnoRestart
		return coro.Deliver
	}
	if flags&descRaw != 0 {
		if f.Access != coro.WriteProtected {
			rescueLater()
		}
		return coro.Wait
	}
	return coro.WaitGo
}

// decideWrite: a store to a page that is there, write-protected.
//
//go:nosplit
//go:norace
//go:nocheckptr
func decideWrite(f *coro.Fault, d *desc, page uint64, flags uint32) coro.Verdict {
	for {
		pw, w := d.look(page)
		if pw == nil {
			return coro.Retry
		}
		switch w & stateMask {
		case stResident, stWriting:
			if unlockPage(d, pw, w, page, 0, false) {
				return coro.Retry
			}
			if bare.Load64(pw) != w && bare.Load32(&d.cut) == 0 {
				continue
			}
			if bare.Load32(&d.cut) == 0 && reclaimVia(d.words, max(d.framesPerPage(), reclaimFew), reclaimLeaves) > 0 {
				continue
			}
			// No credit: something must be written first. Or a commit is taking
			// its cut.
			return waitVerdict(f, flags)
		default:
			relax(64)
			return coro.Retry
		}
	}
}

// unlockPage makes a clean page writable and Dirty, or a page that is being
// written writable again. w is what its word was. false: the word has changed,
// or there is no credit for one more dirty page: floor credits must be left (0,
// or less for the fault server). Or, without force, a commit is taking its cut.
//
// The order matters twice: the dirty bit is set before the page can be written
// to, so that a Sync that begins after a store cannot overlook it; and the
// state is Unlocking, which nobody else leaves, until the protection is off,
// so that a late unprotect never hits a page that is clean again.
//
//go:nosplit
//go:norace
//go:nocheckptr
func unlockPage(d *desc, pw *word, w word, page uint64, floor int64, force bool) bool {
	if w&stateMask == stWriting && w&flagRedirtied != 0 {
		return true
	}
	bring := !hasCredit(w)
	if bring && !d.words.takeCredits(d.framesPerPage(), floor) {
		return false
	}
	switch unlock(d, pw, w, page, force) {
	case unlockDone:
		return true
	case unlockChanged:
		if bring {
			add64(&d.words.credits, d.framesPerPage())
		}
	}
	return false
}

const (
	unlockDone    = iota
	unlockChanged // the word has
	unlockHeld    // a commit is taking its cut
)

// unlock is the transition itself, from Resident or Writing. While a commit
// takes its cut it does nothing without force: whoever takes the cut sets the
// flag and then looks for dirty bits, we do it the other way round.
//
//go:nosplit
//go:norace
//go:nocheckptr
func unlock(d *desc, pw *word, w word, page uint64, force bool) int {
	fresh := w&stateMask == stResident
	n := w&^(stateMask|flagKept) | stUnlocking
	if !fresh {
		n |= flagHeld
	}
	if !bare.Cas64(pw, w, n) {
		return unlockChanged
	}
	if w&flagKept != 0 {
		add64(&d.words.kept, -d.framesPerPage()) // it is a dirty page's now
	}
	d.markDirty(page)
	if bare.Load32(&d.cut) != 0 && !force {
		d.clearDirty(page)
		if !fresh {
			setState(pw, stUnlocking, stWriting, flagHeld, 0)
		} else if old, _ := setState(pw, stUnlocking, stResident, 0, 0); old&pinMask == 0 {
			// It had a credit while it was Unlocking, and keeps it only for pins.
			add64(&d.words.credits, d.framesPerPage())
		}
		return unlockHeld
	}
	d.afterSpan(page)
	protectRange(d.addr(page), d.pageSize(), false)
	if fresh {
		d.countDirty()
		setState(pw, stUnlocking, stDirty, flagPrefetched, 0)
	} else {
		setState(pw, stUnlocking, stWriting, flagHeld, flagRedirtied)
	}
	return unlockDone
}

// markDirty sets the page's bit in its leaf.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) markDirty(page uint64) {
	leaf := uint32(bare.Load64(d.dirEntry(page))) & dirLeafMask
	bare.Or64(&metaOf(leaf).dirty, 1<<(page&(leafPages-1)))
}

// takeCredits takes n credits if at least floor are left then. Only the global
// stock can be reached from here, which is why shards keep little.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (w *pagerWords) takeCredits(n, floor int64) bool {
	p := (*uint64)(unsafe.Pointer(&w.credits))
	for {
		v := bare.Load64(p)
		if int64(v)-n < floor {
			return false
		}
		if bare.Cas64(p, v, v-uint64(n)) {
			return true
		}
	}
}

// countDirty counts one page more that is dirty.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) countDirty() {
	add64(&d.dirty, d.framesPerPage())
	if add64(&d.words.dirty, d.framesPerPage()) == d.framesPerPage() {
		d.words.wakeClock() // the first
	}
}

// countClean counts a page that was dirty and is not any more.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) countClean() {
	add64(&d.dirty, -d.framesPerPage())
	add64(&d.words.dirty, -d.framesPerPage())
}

// enterDesc keeps another region of the same pager from being closed while the
// server looks at it; nil if it is not live.
//
//go:nosplit
//go:norace
//go:nocheckptr
func enterDesc(i uint32, words *pagerWords) *desc {
	d := (*desc)(unsafe.Add(sp.descs, uintptr(i)*unsafe.Sizeof(desc{})))
	bare.Add32(&d.users, 1)
	if bare.Load32(&d.state) != descLive || d.words != words {
		bare.Add32(&d.users, ^uint32(0))
		return nil
	}
	return d
}

// enterServer keeps the region from being closed under the server's feet.
//
//go:nosplit
//go:norace
//go:nocheckptr
func enterServer(addr uintptr) *desc {
	d := descOf(addr)
	if d == nil {
		return nil
	}
	bare.Add32(&d.users, 1)
	if bare.Load32(&d.state) != descLive || descOf(addr) != d {
		bare.Add32(&d.users, ^uint32(0))
		return nil
	}
	return d
}

// serverBuffer is where a fault server reads to: one for each page size that
// fits, on the server's own account.
type serverBuffer struct {
	busy uint32
	_    [60]byte
}

const serverBuffers = 16

var (
	srvBusy [serverBuffers]serverBuffer
	srvMem  unsafe.Pointer // serverBuffers × MaxPageSize of address space
)

// takeServerBuffer never fails for long: there are as many as servers.
//
//go:nosplit
//go:norace
//go:nocheckptr
func takeServerBuffer() (i uintptr, mem unsafe.Pointer) {
	for turn := 0; ; turn++ {
		for i = 0; i < serverBuffers; i++ {
			b := (*serverBuffer)(unsafe.Add(unsafe.Pointer(&srvBusy), i*unsafe.Sizeof(serverBuffer{})))
			if bare.Cas32(&b.busy, 0, 1) {
				return i, unsafe.Add(srvMem, i*MaxPageSize)
			}
		}
		relax(turn)
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func giveServerBuffer(i uintptr) {
	bare.Store32((*uint32)(unsafe.Add(unsafe.Pointer(&srvBusy), i*unsafe.Sizeof(serverBuffer{}))), 0)
}

// serve makes the page of f available without Go. It runs in the signal handler
// of the thread that faulted (ArenaConfig.Inline), on its signal stack: waking
// another thread would cost more than most of what it does. To all others that
// thread is a fault server as long as it is in here.
//
//go:nosplit
//go:norace
//go:nocheckptr
func serve(f *coro.Fault) (errno uintptr) {
	d := enterServer(f.Addr)
	if d == nil {
		return errnoClosed
	}
	page := uint64(f.Addr-d.base) >> d.shift
	bare.Add32(&serving, 1)
	slot := beginServing(f.Addr)
	for tries := uint32(0); ; {
		if f.Access == coro.WriteProtected {
			errno = serveWrite(d, page)
		} else {
			errno = serveRead(d, page)
			if d.tryAgain(errno, tries) && bare.Load32(&d.state) == descLive {
				bare.FutexWait(&napWord, 0, d.pauseBefore(tries))
				tries++
				continue
			}
		}
		if errno == 0 || bare.Load32(&d.flags)&descWaitError == 0 || bare.Load32(&d.state) != descLive || errno == errnoRange || errno == errnoClosed {
			break
		}
		bare.FutexWait(&napWord, 0, int64(readRetry)) // OnReadError: Wait
	}
	endServing(slot)
	bare.Add32(&serving, ^uint32(0))
	if errno == 0 {
		d.words.noteServed(d.index, page)
	}
	bare.Add32(&d.users, ^uint32(0))
	return errno
}

// patience is how long a server leaves a page to its ordinary owner before it
// takes over: ordinary reads are much faster, unless the world stands still.
const (
	patience    = 40
	patienceNap = 25_000 // ns
)

// A fault that nothing can be written for ends with an error after serveLimit
// nanoseconds, a quarter of that if writing has failed; but not before the server
// has looked so often: the process may have been stopped.
const (
	serveLimit = 2_000_000_000
	serveTurns = 1000
)

// givesUp: since then there has been nothing to write, or it has failed.
//
//go:nosplit
//go:norace
func givesUp(since int64, turn int, failed uintptr) bool {
	waited := bare.Nanotime() - since
	return turn > serveTurns && (waited > serveLimit/4 && failed != 0 || waited > serveLimit)
}

// Every thread that is blocked holds its P. When as many are served as there
// are Ps, no ordinary owner can be running.
var (
	serving uint32 // faults that are being served
	crowd   uint32 = 1
)

// setPatience adapts to GOMAXPROCS, which a program may change.
func setPatience() {
	bare.Store32(&crowd, uint32(runtime.GOMAXPROCS(0)))
}

//go:nosplit
//go:norace
func impatient(turn int) bool {
	return turn >= patience || bare.Load32(&serving) >= bare.Load32(&crowd)
}

//go:nosplit
//go:norace
//go:nocheckptr
func serveRead(d *desc, page uint64) (errno uintptr) {
	var failed uintptr
	var since int64 // when it found nothing to write for the first time
	for turn := 0; ; turn++ {
		if bare.Load32(&d.state) != descLive {
			return errnoClosed
		}
		if page<<d.shift >= bare.Load64(&d.length) {
			return errnoRange
		}
		pw, w := d.look(page)
		s := w & stateMask
		switch {
		case pw != nil && present(w):
			return 0
		case pw != nil && bounded(w):
			relax(turn)
			continue
		case s == stLoading || s == stFailed:
			if s == stLoading && !isMarker(w) && !impatient(turn) {
				bare.FutexWait(&napWord, 0, patienceNap)
				continue
			}
			// Take over: the frame comes with the page. Its owner finds
			// another generation when he comes back.
			n := w&^(genMask|stateMask|flagMark) | stLoading | newGen()
			if !bare.Cas64(pw, w, n) {
				continue
			}
			if isMarker(w) {
				d.words.markerGone()
			}
			return fillVia(d, pw, page, uint32(n>>32), noticeLoaded)
		case s == stPosted:
			if errno = mapPostedVia(d, pw, w, page); errno != 0 {
				return errno
			}
			continue
		}
		if !d.words.takeFramesDownTo(d.framesPerPage(), 0) {
			if !impatient(turn) {
				// Eviction by the policy is better than stealing, if it can run.
				bare.Store32(&d.words.wantRoom, 1)
				d.words.wake()
				bare.FutexWait(&napWord, 0, patienceNap)
				continue
			}
			if !stealVia(d, d.framesPerPage(), page) {
				// All that is not pinned is dirty: write something, or wait
				// for the writes that are under way.
				e := cleanVia(d.words, turn)
				if e == 0 {
					continue
				}
				if e != errnoNothing {
					failed = e
				}
				if since == 0 {
					since = bare.Nanotime()
				}
				if failed != 0 && givesUp(since, turn, failed) {
					return failed // the store takes nothing
				}
				bare.FutexWait(&napWord, 0, patienceNap)
				continue
			}
		}
		pw, gen, got := d.claim(page, 0)
		if got != claimed {
			d.words.giveFrames(d.framesPerPage())
			if got == claimFull {
				return errnoTable
			}
			continue
		}
		return fillVia(d, pw, page, gen, noticeLoaded)
	}
}

var napWord uint32 // never changes: a futex to sleep on

// Called through variables: see cleanVia.
var (
	fillVia      = fillPage
	fetchVia     = fetchPage
	stealVia     = stealFrames
	mapVia       = mapPages
	readyBornVia = (*desc).readyBorn
	installedVia = (*desc).installed
)

// fillPage reads and maps a page in state Loading of generation gen, which is
// the caller's: of a fault (noticeLoaded) or of a miss that was counted before
// (noticeRescued).
//
//go:nosplit
//go:norace
//go:nocheckptr
func fillPage(d *desc, pw *word, page uint64, gen uint32, notice uint64) (errno uintptr) {
	i, mem := takeServerBuffer()
	size := d.pageSize()
	src, n, errno := fetchVia(d, page, mem)
	if d.past(page) {
		errno = errnoRange
	}
	if errno == 0 {
		was, ok := advance(pw, gen, stLoading, stInstalling, 0, 0)
		if !ok {
			// Somebody took it over in turn, or cancelled it. Those who wait for
			// it are woken to look; the instruction tries again.
			giveServerBuffer(i)
			d.words.notify(noticeLoaded, d.index, page, true)
			return 0
		}
		dirty := born(was) && readyBornVia(d, page, 1)
		errno = mapVia(d.addr(page), src, size, !dirty)
		if errno == 0 {
			old := installedVia(d, pw, dirty)
			giveServerBuffer(i)
			if notice == noticeRescued {
				bare.Add64(&d.words.rescued, 1)
			} else {
				add64((*int64)(unsafe.Pointer(&d.words.served)), 1)
				add64((*int64)(unsafe.Pointer(&d.misses)), 1)
				add64((*int64)(unsafe.Pointer(&d.words.srvRead)), int64(n))
			}
			low := load64(&d.words.free) < load64(&d.words.lowWater)
			d.words.notify(notice, d.index, page, old&flagWaited != 0 || low || bare.Load32(&d.flags)&descNotices != 0)
			return 0
		}
		if dirty {
			d.unborn(page, 1)
		}
		setState(pw, stInstalling, stLoading, 0, 0)
	}
	giveServerBuffer(i)
	// It failed. Who waits in the ordinary way is told by the housekeeper.
	for {
		w := bare.Load64(pw)
		if w&stateMask != stLoading || uint32(w>>32) != gen {
			return errno
		}
		if w&(flagWaited|pinMask) != 0 {
			if bare.Cas64(pw, w, w&^(stateMask|flagMark)|stFailed) {
				d.words.notify(noticeFailed, d.index, page, true)
				return errno
			}
			continue
		}
		if bare.Cas64(pw, w, w&genMask) {
			add64(&d.resident, -d.framesPerPage())
			d.drop(page)
			d.words.giveFrames(d.framesPerPage())
			return errno
		}
	}
}

// preadFull reads size bytes (whole pages, as O_DIRECT wants) of which the
// store must have at least need.
//
//go:nosplit
//go:norace
//go:nocheckptr
func preadFull(fd int, mem unsafe.Pointer, size, need uintptr, off uint64) (errno uintptr) {
	got := uintptr(0)
	for got < need {
		n, e := bare.Syscall(syscall.SYS_PREAD64, uintptr(fd), uintptr(mem)+got, size-got, uintptr(off)+got, 0, 0)
		if e == uintptr(syscall.EINTR) {
			continue
		}
		if e != 0 {
			return e
		}
		if n == 0 {
			return errnoShrunk
		}
		got += n
	}
	return 0
}

// stealFrames takes n frames for page: free ones, or those of clean unpinned
// pages, or those of reads that nobody waits for.
//
//go:nosplit
//go:norace
//go:nocheckptr
func stealFrames(d *desc, n int64, page uint64) bool {
	w := d.words
	for tries := 0; tries < 4; tries++ {
		if w.takeFramesDownTo(n, 0) {
			return true
		}
		if !stealOne(w, tries > 0, spare(tries)) && tries > 2 {
			break
		}
	}
	return w.takeFramesDownTo(n, -load64(&w.frameSlack))
}

// stealOne frees the frames of one page of the pager with words w.
//
//go:nosplit
//go:norace
//go:nocheckptr
func stealOne(words *pagerWords, cancel bool, keep uint64) bool {
	used := bare.Load32(&sp.leafUsed)
	for i := uint32(0); i <= used+1; i++ {
		h := bare.Add32(&words.hand, 1) % (used + 1)
		if h == 0 {
			continue
		}
		m := metaOf(h)
		di := bare.Load32(&m.desc)
		if di == 0 {
			continue
		}
		d := enterDesc(di, words)
		if d == nil {
			continue
		}
		ok := stealFrom(d, bare.Load64(&m.group)<<leafShift, cancel, keep)
		bare.Add32(&d.users, ^uint32(0))
		if ok {
			return true
		}
	}
	return false
}

//go:nosplit
//go:norace
//go:nocheckptr
func stealFrom(d *desc, first uint64, cancel bool, keep uint64) bool {
	for page := first; page < first+leafPages && page < d.pages; page++ {
		pw, w := d.look(page)
		if pw == nil {
			return false
		}
		if w&pinMask != 0 || d.words.servedLately(d.index, page, keep) {
			continue
		}
		switch {
		case w&stateMask == stResident:
			if !bare.Cas64(pw, w, w&^stateMask|stEvicting) {
				continue
			}
			if w&flagKept != 0 {
				d.words.returnKept(d.framesPerPage())
			}
			unmapVia(d.addr(page), d.pageSize())
			if d.vacate(pw, page) && spanTake(d, page) {
				unmapVia(d.addr(page)&^(granule-1), granule)
				bare.Store32(d.spanWord(page), 0)
			}
		case cancel && w&stateMask == stLoading:
			// Nobody has been promised a pin. The owner will find that the page
			// is not his any more, and those who wait for it try again.
			if !bare.Cas64(pw, w, w&genMask) {
				continue
			}
			if isMarker(w) {
				d.words.markerGone()
			}
			add64(&d.resident, -d.framesPerPage())
			d.drop(page)
			if w&flagWaited != 0 {
				// If the owner is a fault server nobody else tells them.
				d.words.notify(noticeLoaded, d.index, page, true)
			}
		default:
			continue
		}
		add64((*int64)(unsafe.Pointer(&d.words.stolen)), 1)
		d.words.giveFrames(d.framesPerPage())
		return true
	}
	return false
}
