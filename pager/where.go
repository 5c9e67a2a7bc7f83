//go:build linux

package pager

import (
	"syscall"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
	"github.com/uffdpager/uffdpager/pager/store"
)

// Where a page is
//
// The contents of a page that is not in memory are in one of three places: in
// the region's store, nowhere (it lies past what the store has: zeros), or in
// the side store, which takes what must not go to the store (yet). The side
// map has a word for each page: 0, or a place in the side store plus one. All
// ways in and out ask here: loads, the fault server, writeback.
//
// A Private region's side store is its spill file, where a page's place is its
// own offset. (Its map only says yes or no.) An Atomic region's is its journal,
// where a place is a slot: see slots.go.
//
// A page is given a place only while it is being written (Writing, one write at
// a time). So while a page is Loading its word changes only to 0, when a
// checkpoint has written to the store what the slot holds: whoever has read a
// place looks at the word once more, and reads again if it has changed.

// source is where a page's contents are.
type source uint8

const (
	fromStore source = iota
	fromZeros        // nowhere: the store has nothing of it
	fromSide         // in the side store
)

// openSideMap makes the map for pages pages. closeSide undoes it.
func (d *desc) openSideMap(pages uint64) error {
	m, err := reserve(sideMapBytes(pages))
	if err == nil {
		d.sideMap = m
	}
	return err
}

func sideMapBytes(pages uint64) uintptr {
	return (uintptr(pages)*4 + FrameSize) &^ (FrameSize - 1)
}

// sideWord is the page's word in the side map, which there must be.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) sideWord(page uint64) *uint32 {
	return (*uint32)(unsafe.Add(d.sideMap, page*4))
}

// place is the page's word, 0 if it is not in the side store.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) place(page uint64) uint32 {
	if d.sideMap == nil {
		return 0
	}
	return bare.Load32(d.sideWord(page))
}

// placeAt is the offset in the side store of page's place v.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) placeAt(page uint64, v uint32) uint64 {
	if d.flags&descSideOwn != 0 {
		return page << d.shift
	}
	return d.sideOff + uint64(v-1)<<d.shift
}

// sourceOf says where a page's contents are, and at which offset.
func (r *Region) sourceOf(page uint64) (source, int64) {
	if v := r.d.place(page); v != 0 {
		return fromSide, int64(r.d.placeAt(page, v))
	}
	if page<<r.shift >= bare.Load64(&r.d.stored) {
		return fromZeros, int64(page << r.shift)
	}
	return fromStore, int64(page << r.shift)
}

// moved: a page of l, which was read from the side store, is elsewhere now.
func (r *Region) moved(l *load) bool {
	for i, gen := range l.gens {
		page := l.first + uint64(i)
		if _, w := r.d.look(page); w&stateMask != stLoading || uint32(w>>32) != gen {
			continue // not this load's any more
		}
		if v := r.d.place(page); v == 0 || int64(r.d.placeAt(page, v)) != l.at+int64(i<<r.shift) {
			return true
		}
	}
	return false
}

// sourceStore is the store that a source is in.
func (r *Region) sourceStore(s source) store.Store {
	if s == fromSide {
		return r.write.side
	}
	return r.store
}

// writeStore is where dirty pages go.
func (r *Region) writeStore() store.Store {
	if r.write.side != nil {
		return r.write.side
	}
	return r.store
}

// fetchPage reads page to mem. The contents are at src, which is mem, or the
// store's own memory. It runs without a P.
//
//go:nosplit
//go:norace
//go:nocheckptr
func fetchPage(d *desc, page uint64, mem unsafe.Pointer) (src unsafe.Pointer, n, errno uintptr) {
	size := d.pageSize()
	off := page << d.shift
	for v := d.place(page); v != 0; {
		if d.sideMem != nil {
			bare.Copy(mem, unsafe.Add(d.sideMem, d.placeAt(page, v)), size)
		} else {
			errno = preadFull(int(d.sideFD), mem, size, size, d.placeAt(page, v))
		}
		again := d.place(page)
		if again == v {
			return mem, size, errno
		}
		v, errno = again, 0 // a checkpoint has moved it
	}
	stored := bare.Load64(&d.stored)
	n = size
	if off >= stored {
		n = 0
	} else if stored-off < uint64(size) {
		n = uintptr(stored - off)
	}
	for tries := 0; ; tries++ {
		src = mem
		switch {
		case d.mem != nil && n == size:
			src = unsafe.Add(d.mem, off)
		case d.mem != nil:
			bare.Copy(mem, unsafe.Add(d.mem, off), n)
		case n > 0:
			errno = preadFull(int(d.fd), mem, size, n, d.fdOff+off)
		}
		if errno != 0 {
			return src, n, errno
		}
		if n < size {
			bare.Zero(unsafe.Add(mem, n), size-n)
		}
		if d.sums == nil || sumsFit(d, off, src, n) {
			return src, n, 0
		}
		if tries == sumTries {
			return src, n, errnoSum
		}
		// A Discard may have changed it while it was read.
		bare.FutexWait(&napWord, 0, patienceNap)
	}
}

const sumTries = 3

// sumsFit compares the first n bytes of a page at off, zeros after them, with
// the store's sums.
//
//go:nosplit
//go:norace
//go:nocheckptr
func sumsFit(d *desc, off uint64, src unsafe.Pointer, n uintptr) bool {
	for at := uintptr(0); at < n; at += store.SumBlock {
		e := bare.Load64((*uint64)(unsafe.Add(d.sums, (uintptr(off)+at)/store.SumBlock*8)))
		if s := bare.CRC32C(unsafe.Add(src, at), store.SumBlock) ^ zeroSum; s != uint32(e) && s != uint32(e>>32) {
			return false
		}
	}
	return true
}

var zeroSum = store.ZeroSum

// storePage writes page from mem to where dirty pages go; in the side store
// that is place v. It runs without a P.
//
//go:nosplit
//go:norace
//go:nocheckptr
func storePage(d *desc, page uint64, v uint32, mem unsafe.Pointer) (errno uintptr) {
	off := page << d.shift
	if d.sideMap != nil && d.sideMem != nil {
		bare.Copy(unsafe.Add(d.sideMem, d.placeAt(page, v)), mem, d.pageSize())
		return 0
	}
	if d.sideMap != nil {
		return pwriteFull(int(d.sideFD), mem, d.pageSize(), d.placeAt(page, v))
	}
	if d.mem != nil {
		bare.Copy(unsafe.Add(d.mem, off), mem, d.pageSize())
		return 0
	}
	return pwriteFull(int(d.fd), mem, d.pageSize(), d.fdOff+off)
}

//go:nosplit
//go:norace
//go:nocheckptr
func pwriteFull(fd int, mem unsafe.Pointer, size uintptr, off uint64) (errno uintptr) {
	for done := uintptr(0); done < size && errno == 0; {
		n, e := bare.Syscall(syscall.SYS_PWRITE64, uintptr(fd), uintptr(mem)+done, size-done, uintptr(off)+done, 0, 0)
		if e == uintptr(syscall.EINTR) {
			continue
		}
		if e == 0 && n == 0 {
			e = uintptr(syscall.EIO)
		}
		errno = e
		done += n
	}
	return errno
}

// placeRoom says whether it is worth copying page out: always, but for a spill
// file that is full.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) placeRoom(page uint64) bool {
	return d.flags&descSideOwn == 0 || d.place(page) != 0 || !d.spillFull()
}

// spillFull: no page gets a place in the spill file that has none.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) spillFull() bool {
	return d.flags&descSideOwn != 0 && load64(&d.sideUsed) >= d.sideMax
}

// takePlace gives page a place in the spill file, if there is one: the caller
// has it Writing, so that nobody else gives or takes its place. It is counted
// before the write, so that writes in flight stay within the limit as well, and
// is the page's when it is written, or given back by losePlace.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) takePlace(page uint64) bool {
	if d.flags&descSideOwn == 0 || d.place(page) != 0 {
		return true
	}
	if add64(&d.sideUsed, 1) > d.sideMax {
		add64(&d.sideUsed, -1)
		return false
	}
	return true
}

// losePlace undoes takePlace of a page that has not been written.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) losePlace(page uint64) {
	if d.flags&descSideOwn != 0 && d.place(page) == 0 {
		add64(&d.sideUsed, -1)
	}
}

// written notes that page has been written to where dirty pages go. length is
// the region's: the store has no more.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) written(page, length uint64) {
	if d.sideMap == nil {
		d.raiseStored(min(length, (page+1)<<d.shift))
		return
	}
	bare.Store32(d.sideWord(page), 1) // see takePlace
}

// raiseStored notes that the store has data up to end.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (d *desc) raiseStored(end uint64) {
	for {
		v := bare.Load64(&d.stored)
		if end <= v || bare.Cas64(&d.stored, v, end) {
			return
		}
	}
}

// unplace forgets what is in the side store of n pages (truncation).
func (r *Region) unplace(first, n uint64) {
	if r.d.sideMap == nil {
		return
	}
	for page := first; page < first+n; page++ {
		if v := r.d.place(page); v != 0 && bare.Cas32(r.d.sideWord(page), v, 0) {
			add64(&r.d.sideUsed, -1)
		}
	}
}
