//go:build linux

package pager

import (
	"unsafe"

	"github.com/uffdpager/uffdpager/coro"
	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/evict"
)

// Mapping what was read
//
// A load that has come is mapped in groups, each with one ioctl as far as its pages
// are still the load's: a page that was taken over meanwhile, by a thread without a
// P, is its business and left alone.

// finishGroup installs k pages of l from the i-th; move: see move.go. It says whether they
// have to be read again.
func (p *Pager) finishGroup(l *load, i, k int, move bool, err error) (again bool) {
	r := l.r
	first := l.first + uint64(i)
	var res [groupMax]installResult
	if err == nil && r.opt.Verify != nil && l.from != fromZeros {
		for j := range k {
			off := (i + j) << r.shift
			if verr := r.verify(first+uint64(j), l.op.Buf[off:off+1<<r.shift]); verr != nil {
				p.readFailed(r, first+uint64(j), 1, verr)
				p.failPage(r, first+uint64(j), l.gens[i+j], stLoading, r.fault("verify", first+uint64(j), verr))
				res[j].code = installSkip
			}
		}
	}
	marks := err == nil && l.marks && l.holdBack(i, k, res[:k])
	if err == nil {
		installGroup(r.d, first, &l.gens[i], k, unsafe.Pointer(&l.op.Buf[i<<r.shift]), move, &res[0])
		if move && (res[0].code == installDone || res[0].code == installFailed) {
			l.buf.spent = true
		}
		why := evict.Demand
		if l.kind == ahead {
			why = evict.Prefetch
		}
		p.noteInstalled(r, first, res[:k], why)
		for j := 0; marks && j < k; j++ {
			switch {
			case res[j].code != installMark:
			case r.moves():
				p.keepBuffer(l, move)
			default:
				p.keepMarker(r, first+uint64(j), l.gens[i+j], l.op.Buf[(i+j)<<r.shift:][:1<<r.shift])
			}
		}
	}
	for j := range k {
		page := first + uint64(j)
		switch {
		case err != nil:
			p.failPage(r, page, l.gens[i+j], stLoading, r.fault("read", page, err))
		case res[j].code == installDone:
			switch old := res[j].old; {
			case old&flagWaited == 0:
			case born(old):
				// Whoever has stored to it while it was Installing, and joined then
				// to read that back, must not be shown the buffer.
				p.settle(r, page)
			default:
				p.settleFrom(r, page, l.gens[i+j], l.buf, (i+j)<<r.shift)
			}
		case res[j].code == installLost:
			p.settle(r, page)
		case res[j].code == installFailed && res[j].errno == errnoReadAgain:
			again = true
		case res[j].code == installFailed:
			p.failPage(r, page, l.gens[i+j], stLoading, r.fault("map", page, errnoError(uintptr(res[j].errno))))
		}
	}
	return again
}

type installResult struct {
	code  uint32
	errno uint32
	old   word // the word before it became Resident, or Dirty
}

const (
	installNone   = iota
	installSkip   // by the caller: not to be installed
	installMark   // the same: a marker
	installDone   //
	installLost   // taken over or cancelled: nothing of it is ours
	installFailed // the kernel refused; the page is Loading again
)

// installGroup maps k consecutive pages from src, or moves it there, as far as their
// generations are still the owner's. From Loading to Resident, or to Dirty, nobody can stop it, so
// nobody waits long for the state between.
//
//go:nosplit
//go:norace
//go:nocheckptr
func installGroup(d *desc, first uint64, gens *uint32, k int, src unsafe.Pointer, move bool, res *installResult) {
	held := coro.Unstopped()
	for i := 0; i < k; {
		n, dirty := beginInstall(d, first, gens, i, k, res)
		if n == 0 {
			i++
			continue
		}
		dirty = dirty && d.readyBorn(first+uint64(i), n)
		done, errno := d.mapRun(first+uint64(i), unsafe.Add(src, uintptr(i)<<d.shift), n, dirty, move)
		endInstall(d, first, i, n, done, dirty, errno, res)
		i += n
	}
	coro.Stoppable(held)
}

// beginInstall takes to Installing the longest run of pages, from the i-th on, that is
// still ours and is mapped in the same way. It says how many that are, and whether they
// are to be dirty.
//
//go:nosplit
//go:norace
//go:nocheckptr
func beginInstall(d *desc, first uint64, gens *uint32, i, k int, res *installResult) (n int, dirty bool) {
	for i+n < k {
		rs := resultAt(res, i+n)
		if rs.code == installSkip || rs.code == installMark {
			break
		}
		gen := *(*uint32)(unsafe.Add(unsafe.Pointer(gens), uintptr(i+n)*4))
		pw, w := d.look(first + uint64(i+n))
		if pw == nil || w&stateMask != stLoading || uint32(w>>32) != gen {
			rs.code = installLost
			break
		}
		if n > 0 && born(w) != dirty {
			break // in another way, and so with another call
		}
		if !bare.Cas64(pw, w, w&^stateMask|stInstalling) {
			continue // look again
		}
		dirty = born(w)
		n++
	}
	return n, dirty
}

// endInstall ends Installing of n pages from the i-th on, of which done are mapped.
//
//go:nosplit
//go:norace
//go:nocheckptr
func endInstall(d *desc, first uint64, i, n, done int, dirty bool, errno uintptr, res *installResult) {
	for j := i; j < i+n; j++ {
		pw, _ := d.look(first + uint64(j))
		rs := resultAt(res, j)
		if j >= i+done {
			rs.old, _ = setState(pw, stInstalling, stLoading, 0, 0)
			rs.code, rs.errno = installFailed, uint32(errno)
		} else {
			rs.old, rs.code = d.installed(pw, dirty), installDone
		}
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func resultAt(res *installResult, i int) *installResult {
	return (*installResult)(unsafe.Add(unsafe.Pointer(res), uintptr(i)*unsafe.Sizeof(installResult{})))
}
