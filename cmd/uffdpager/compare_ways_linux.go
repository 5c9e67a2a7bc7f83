package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/cmd/uffdpager/internal/stamp"
	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
)

// readFunc reads the block at off and takes it.
type readFunc func(off int64) error

// way is one way to get at the bytes of a file.
type way struct {
	// read returns the function that goroutine i reads with.
	read func(i int) readFunc
	// drive, if set, does all the work on one goroutine instead.
	drive func(b *bench, next func() int64) error
	// misses says how often the bytes were not there, so far. nil: not told.
	misses func() int64
	// prefill reads as read does, through the memory that the row keeps of the
	// file, which is so many bytes, see rowSpec.prefill. nil: it keeps none.
	prefill func(p []byte, off int64) (int, error)
	keeps   int64
	// beside, if set, is done by one goroutine more while the row is measured.
	beside func(stop func() bool)
	// remarks is what is to be said about the row.
	remarks func() []string
}

func (w *way) notes() []string {
	if w.remarks == nil {
		return nil
	}
	return w.remarks()
}

// sink is where results go that nobody wants. Its store is atomic for the race
// detector; on a shared cache line it would cost more than the work, hence only
// impossible values are stored.
type sink struct{ v atomic.Uint64 }

func (s *sink) Store(v uint64) {
	if v == 0x5eed_5eed_5eed_5eed {
		s.v.Store(v)
	}
}

func openWay(s rowSpec, file *os.File) (*way, error) {
	switch s.Row.Way {
	case wayBytes, wayView, wayAcquire, wayReadAt:
		return openPager(s, file)
	case wayMmap:
		return openMmap(s, file)
	case wayPread:
		return openPread(s, file)
	case wayNowait:
		return openNowait(s, file)
	case wayHandler:
		return openHandler(s, file)
	case wayDevice:
		return openDevice(s, file)
	case wayWriteAt, wayAcquireWrite:
		return openPagerWrites(s, file)
	case wayPwrite:
		return openPwrite(s, file)
	}
	return nil, fmt.Errorf("unknown way %q", s.Row.Way)
}

func openPager(s rowSpec, file *os.File) (*way, error) {
	p, err := pager.New(pager.Options{Budget: s.Budget})
	if err != nil {
		return nil, err
	}
	st, err := store.NewFile(file, store.FileOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	policy, err := aheadPolicy(s)
	if err != nil {
		return nil, err
	}
	r, err := p.Map(st, pager.RegionOptions{ReadOnly: true, PageSize: s.Row.PageSize, HugePages: s.Row.PageSize == pager.MaxPageSize, Prefetch: policy})
	if err != nil {
		return nil, err
	}
	w := &way{
		misses: func() int64 { return missesOf(p.Stats()) }, prefill: r.ReadAt, keeps: s.Budget,
		remarks: func() (notes []string) {
			if !r.Direct() {
				notes = append(notes, "the file system refuses direct I/O: this went through the page cache")
			}
			if st := p.Stats(); st.Faults.Blocked > st.Faults.Parked/100 {
				notes = append(notes, fmt.Sprintf("%s faults blocked a thread, %s were parked in place (%s)",
					count(int64(st.Faults.Blocked)), count(int64(st.Faults.Parked)), st.Park))
			}
			return notes
		},
	}
	if s.Row.Prefetch == aheadReplay {
		w.prefill = nil // a restart begins with nothing in memory
	}
	if s.Row.Bulk {
		w.beside = func(stop func() bool) { needInBulk(r, s.Budget, stop) }
	}
	ctx := context.Background()
	switch s.Row.Way {
	case wayBytes:
		if err := r.Raw(); err != nil {
			return nil, err
		}
		mem := r.Bytes()
		w.read = func(int) readFunc {
			return func(off int64) error { return takeBlock(mem[off:off+blockSize], off, s.Stamped) }
		}
	case wayView:
		w.read = func(int) readFunc {
			var off int64
			fn := func(mem []byte) error { return takeBlock(mem[off:off+blockSize], off, s.Stamped) }
			return func(at int64) error {
				off = at
				return r.View(ctx, fn)
			}
		}
	case wayAcquire:
		w.read = func(int) readFunc {
			return func(off int64) error {
				pin, err := r.Acquire(ctx, off, blockSize)
				if err != nil {
					return err
				}
				err = takeBlock(pin.Bytes(), off, s.Stamped)
				pin.Release()
				return err
			}
		}
	case wayReadAt:
		w.read = func(int) readFunc { return readInto(make([]byte, blockSize), s.Stamped, r.ReadAt) }
	}
	return w, nil
}

// readInto makes a readFunc of one that copies.
func readInto(buf []byte, stamped bool, readAt func(p []byte, off int64) (int, error)) readFunc {
	return func(off int64) error {
		switch n, err := readAt(buf, off); {
		case err != nil:
			return err
		case n < len(buf):
			return io.ErrUnexpectedEOF
		}
		return takeBlock(buf, off, stamped)
	}
}

var mmapAdvice = map[string]int{"random": unix.MADV_RANDOM, "normal": unix.MADV_NORMAL, "sequential": unix.MADV_SEQUENTIAL}

func openMmap(s rowSpec, file *os.File) (*way, error) {
	mem, err := unix.Mmap(int(file.Fd()), 0, int(s.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	if err := unix.Madvise(mem, mmapAdvice[s.Row.Advice]); err != nil {
		return nil, err
	}
	return &way{
		read: func(int) readFunc {
			return func(off int64) error { return takeBlock(mem[off:off+blockSize], off, s.Stamped) }
		},
		misses: func() int64 {
			var u unix.Rusage
			unix.Getrusage(unix.RUSAGE_SELF, &u)
			return u.Majflt
		},
		prefill: file.ReadAt, keeps: s.Memory,
	}, nil
}

// reopen opens the file anew: flags and read-ahead belong to the open file,
// which is shared with the process that started this one.
func reopen(file *os.File, flags int) (int, error) {
	return unix.Open(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), unix.O_CLOEXEC|flags, 0)
}

// bufferedFD is the file through the page cache, with read-ahead where that is
// of use.
func bufferedFD(s rowSpec, file *os.File) (int, error) {
	fd, err := reopen(file, 0)
	if err == nil && s.Workload != loadScan && s.Workload != loadInterleaved {
		unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM)
	}
	return fd, err
}

// blockBuffers is n aligned buffers of one block, as direct I/O wants them.
func blockBuffers(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, n*blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
}

func openPread(s rowSpec, file *os.File) (*way, error) {
	var fd int
	var err error
	if s.Row.Direct {
		fd, err = reopen(file, unix.O_DIRECT)
	} else {
		fd, err = bufferedFD(s, file)
	}
	if err != nil {
		return nil, err
	}
	if s.Row.Chunk > 0 {
		return openPreadChunks(s, fd)
	}
	bufs, err := blockBuffers(s.Row.Goroutines)
	if err != nil {
		return nil, err
	}
	w := &way{read: func(i int) readFunc {
		return readInto(bufs[i*blockSize:][:blockSize], s.Stamped, func(p []byte, off int64) (int, error) { return pread(fd, p, off) })
	}}
	if !s.Row.Direct {
		w.prefill, w.keeps = file.ReadAt, s.Memory
	}
	return w, nil
}

// pread is pread(2), tried again when a signal comes in between.
func pread(fd int, p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(fd, p, off)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// openNowait reads what the page cache has on the spot, and has a pool of as
// many goroutines as there are readers read the rest.
func openNowait(s rowSpec, file *os.File) (*way, error) {
	fd, err := bufferedFD(s, file)
	if err != nil {
		return nil, err
	}
	type request struct {
		buf  []byte
		off  int64
		n    int
		err  error
		done chan struct{}
	}
	requests := make(chan *request)
	for range s.Row.Goroutines {
		go func() {
			for r := range requests {
				r.n, r.err = pread(fd, r.buf, r.off)
				r.done <- struct{}{}
			}
		}()
	}
	var missed atomic.Int64
	return &way{
		read: func(int) readFunc {
			r := &request{done: make(chan struct{}, 1)}
			return readInto(make([]byte, blockSize), s.Stamped, func(p []byte, off int64) (int, error) {
				n, err := preadNowait(fd, p, off)
				if err == nil && n == len(p) {
					return n, nil
				}
				if err != nil && err != unix.EAGAIN && err != unix.EINTR {
					return n, err
				}
				missed.Add(1)
				r.buf, r.off = p, off
				requests <- r
				<-r.done
				return r.n, r.err
			})
		},
		misses: missed.Load, prefill: file.ReadAt, keeps: s.Memory,
	}, nil
}

// openDevice keeps as many direct reads, or writes, under way as the row says, through our
// own engine and nothing else.
func openDevice(s rowSpec, file *os.File) (*way, error) {
	code, access := aio.Read, unix.O_RDONLY
	if s.Workload == loadOverwrite {
		code, access = aio.Write, unix.O_RDWR
	}
	fd, err := reopen(file, access|unix.O_DIRECT)
	if err != nil {
		return nil, err
	}
	engine, err := aio.Open(aio.Options{})
	if err != nil {
		return nil, err
	}
	depth := s.Row.Goroutines
	size := max(s.Row.Chunk, blockSize)
	if s.Row.Chunk > 0 && s.Size < size {
		return nil, fmt.Errorf("the file is smaller than the %s that are read at a time", humanBytes(size))
	}
	bufs, err := blockBuffers(depth * int(size/blockSize))
	if err != nil {
		return nil, err
	}
	var done atomic.Int64
	drive := func(b *bench, next func() int64) (failed error) {
		if s.Row.Chunk > 0 {
			next = chunks(s)
		}
		flying := 0
		ops := make([]*aio.Op, depth)
		began := make([]time.Duration, depth)
		for i := range ops {
			ops[i] = &aio.Op{Code: code, FD: fd, Buf: bufs[i*int(size):][:size]}
			ops[i].Done = func(op *aio.Op) {
				flying--
				switch {
				case op.Err != nil:
					failed = op.Err
				case op.N < len(op.Buf):
					failed = io.ErrUnexpectedEOF
				case code == aio.Read:
					for at := int64(0); at < size && failed == nil; at += blockSize {
						failed = takeBlock(op.Buf[at:at+blockSize], op.Off+at, s.Stamped)
					}
				}
				done.Store(done.Load() + size/blockSize)
				now := time.Since(b.began)
				b.recordBlocks(&b.readers[0], size/blockSize, began[i], now)
				if failed == nil && !b.stop.Load() {
					began[i], op.Off = now, next()*blockSize
					if code == aio.Write {
						stamp.Fill(op.Buf, op.Off, 0)
					}
					flying++
					engine.Submit(ops[i : i+1])
				}
			}
			ops[i].Off = next() * blockSize
			if code == aio.Write {
				stamp.Fill(ops[i].Buf, ops[i].Off, 0)
			}
		}
		flying = depth
		engine.Submit(ops)
		for ctx := context.Background(); flying > 0; {
			if engine.Reap(8) == 0 {
				if err := engine.Wait(ctx); err != nil {
					return err
				}
			}
		}
		return failed
	}
	return &way{drive: drive, misses: done.Load}, nil
}
