//go:build linux

package pager

import (
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
)

// Pages that are born dirty
//
// A page that is read because somebody is about to store to it need not be
// mapped write-protected first: taking the protection off a moment later is one
// more system call, one more flush of translations on every core that runs the
// program, and for a raw store one more fault. So whoever claims a page for that,
// or joins those who wait for it, says so in its word (flagForStore), and
// whoever maps it, maps it writable, as Dirty. One that is written whole is not
// even read (bornDirty). Four things make that as safe as unlockPage:
//
//   - Its credit. A Dirty page has one, and so has a pinned one; a page that is
//     read for a store is therefore pinned by who waits for it, and is born dirty
//     only if there is a pin in the word that becomes Installing. From then on
//     until it is Dirty nobody takes a pin off it (unpinLast), so that the credit
//     cannot go: once the page is mapped it is too late to protect it, for it may
//     have been stored to.
//   - Its dirty bit, which is set before it is mapped: a Sync or a Commit that
//     begins after a store cannot overlook it, and waits until the page, which is
//     Installing, is Dirty.
//   - The cut. Who waits in AcquireWrite or WriteAt is inside the gate; a parked
//     store is not, nor is who has given up waiting. So the cut is looked at after
//     the bit is set, as unlock does, and while one is taken the page is mapped
//     protected.
//   - Spans: Installing is said before afterSpan is asked, see span.go.
//
// Pages of several frames are mapped protected. The frames come one after the
// other, and if the kernel refuses one of them all of the page has to go again:
// with what had been stored to the frames before it. So one that is written whole
// is opened when all of it is there, with a call of its own.
//
// A page that was read ahead and that nobody has touched (flagPrefetched) is
// mapped protected: its first touch is news for the policy. If nobody stores to
// the page after all, because his context has ended, it is written back as it
// was read.

// born: a page on its way in, with this word when it becomes Installing, is
// mapped as Dirty.
//
//go:nosplit
//go:norace
func born(w word) bool {
	return w&(flagForStore|flagPrefetched) == flagForStore && w&pinMask != 0
}

// forStore says of a page that is on its way, claimed with generation gen, that
// somebody who has a pin on it is about to store to it.
func (d *desc) forStore(page uint64, gen uint32) {
	for {
		pw, w := d.look(page)
		if pw == nil || w&stateMask != stLoading || uint32(w>>32) != gen || w&pinMask == 0 {
			return
		}
		if bare.Cas64(pw, w, w|flagForStore) {
			return
		}
	}
}

// readyBorn prepares n pages, which are Installing, for being mapped writable;
// whoever does not get them mapped calls unborn. false: a commit is taking its
// cut, and they must be mapped protected.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) readyBorn(first uint64, n int) bool {
	for i := 0; i < n; i++ {
		d.markDirty(first + uint64(i))
	}
	if bare.Load32(&d.cut) != 0 {
		d.unborn(first, n)
		return false
	}
	for i := 0; i < n; i++ {
		d.afterSpan(first + uint64(i))
	}
	return true
}

//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) unborn(first uint64, n int) {
	for i := 0; i < n; i++ {
		d.clearDirty(first + uint64(i))
	}
}

// mapRun maps n pages from src, and says how many; with move (a page of 2 MiB) it may take
// the memory of src for that, see move.go. Either all or none, but those
// that are to be dirty: they are of one frame each, and one that has been mapped
// may have been stored to although the next could not be.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) mapRun(first uint64, src unsafe.Pointer, n int, dirty, move bool) (done int, errno uintptr) {
	dst, size := d.addr(first), uintptr(n)<<d.shift
	if dirty {
		at, errno := mapFrames(dst, src, size, false)
		done = int(at >> d.shift)
		d.unborn(first+uint64(done), n-done)
		return done, errno
	}
	at := uintptr(0)
	if move {
		if at, errno = moveIn(dst, uintptr(src), size); errno != 0 {
			return 0, errno
		}
		if at == size {
			return n, 0
		}
	}
	// All, or what could not be moved.
	if _, errno = mapFrames(dst+at, unsafe.Add(src, at), size-at, true); errno != 0 {
		unmapVia(dst, size)
		return 0, errno
	}
	return n, 0
}

// installed ends Installing: the page is mapped, writable if dirty. It returns
// what the word was.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) installed(pw *word, dirty bool) (old word) {
	if !dirty {
		old, _ = setState(pw, stInstalling, stResident, flagWaited|flagMark|flagForStore, 0)
		return old
	}
	d.countDirty()
	old, _ = setState(pw, stInstalling, stDirty, flagWaited|flagMark|flagForStore|flagPrefetched, 0)
	return old
}

// bornWhole maps a claimed page that is written whole, from src: as Dirty, or with
// through in Writing (through.go), and says which. Its caller has a credit for it,
// and is inside the gate: no cut is being taken. On an error, but for
// errnoTakenOver, the page is Loading as before.
//
//go:nosplit
//go:norace
//go:nocheckptr
func bornWhole(d *desc, pw *word, gen uint32, page uint64, src unsafe.Pointer, through bool) (old word, errno uintptr, writing bool) {
	held := coro.Unstopped()
	errno = errnoTakenOver
	if _, ok := advance(pw, gen, stLoading, stInstalling, 0, 0); ok {
		if through {
			old, errno, writing = bornWriting(d, pw, page, src)
		} else {
			old, errno = bornDirty(d, pw, page, src)
		}
		if errno != 0 {
			setState(pw, stInstalling, stLoading, 0, 0)
		}
	}
	coro.Stoppable(held)
	return old, errno, writing
}

// bornDirty maps a page that is Installing writable, as Dirty.
//
//go:nosplit
//go:norace
//go:nocheckptr
func bornDirty(d *desc, pw *word, page uint64, src unsafe.Pointer) (old word, errno uintptr) {
	d.markDirty(page)
	d.afterSpan(page)
	large := d.pageSize() > FrameSize
	if errno = mapPages(d.addr(page), src, d.pageSize(), large); errno != 0 {
		d.unborn(page, 1)
		return 0, errno
	}
	if large {
		protectRange(d.addr(page), d.pageSize(), false)
	}
	return d.installed(pw, true), 0
}
