//go:build linux

package pager

import (
	"runtime"
	"syscall"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
)

// A blocked fault
//
// A fault whose code cannot be parked is served here, on its own thread, which
// has a P and must need none: it takes the page's read over from an owner that
// cannot run, or begins one; it finds a frame, by stealing one (steal.go) or by
// writing a dirty page (servewrite.go) if it must; it reads and maps. It waits for
// nobody but the kernel, and leaves to the housekeeper what only Go code can do.
// The rescuer (rescue.go) loads pages in the same way.

// serverBuffer is where a fault server reads to: one for each page size that
// fits, on the server's own account.
type serverBuffer struct {
	busy uint32
	gen  uint32 // the generation of the page that is being read to it; 0: none
	_    [56]byte
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
			if bare.Cas32(&serverBufferOf(i).busy, 0, 1) {
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
	b := serverBufferOf(i)
	bare.Store32(&b.gen, 0)
	bare.Store32(&b.busy, 0)
}

//go:nosplit
//go:norace
//go:nocheckptr
func serverBufferOf(i uintptr) *serverBuffer {
	return (*serverBuffer)(unsafe.Add(unsafe.Pointer(&srvBusy), i*unsafe.Sizeof(serverBuffer{})))
}

// readByServer: the page that has this generation is being read by a server, who needs
// no P either and will have done. Two who took over from each other would read the
// page for ever, each throwing away what the other has read.
//
//go:nosplit
//go:norace
func readByServer(gen uint32) bool {
	for i := uintptr(0); i < serverBuffers; i++ {
		if bare.Load32(&serverBufferOf(i).gen) == gen {
			return true
		}
	}
	return false
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
			errno = serveWriteVia(d, page)
		} else {
			errno = serveReadVia(d, page)
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
	d.leave()
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
			if s == stLoading && !isMarker(w) && (!impatient(turn) || readByServer(uint32(w>>32))) {
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
	bare.Store32(&serverBufferOf(i).gen, gen)
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
