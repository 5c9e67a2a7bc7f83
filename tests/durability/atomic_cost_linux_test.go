package durability

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/aio"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

// counting counts what is written to a store.
type counting struct {
	store.Store
	bytes, flushes *atomic.Int64
}

func (c counting) Start(e aio.Engine, ops []*aio.Op) {
	for _, op := range ops {
		switch op.Code {
		case aio.Write:
			c.bytes.Add(int64(len(op.Buf)))
		case aio.Flush:
			c.flushes.Add(1)
		}
	}
	c.Store.Start(e, ops)
}

// TestAtomicBytesWritten counts the bytes that a commit and its checkpoint
// write, to both stores, for each dirty byte.
func TestAtomicBytesWritten(t *testing.T) {
	fixture.NeedWrite(t)
	for _, c := range []struct {
		pages int64
		most  float64
	}{
		// A commit of one page is a page, a record of a block, and the page in
		// place; the header of the checkpoint is shared by many.
		{1, 3.1},
		{64, 2.1},
		{4096, 2.1},
	} {
		t.Run(fmt.Sprint(c.pages), func(t *testing.T) {
			const size = 4096 * frame
			var bytes, flushes atomic.Int64
			p := fixture.Pager(t, pager.Options{Budget: 3 * size})
			r := fixture.Map(t, p, counting{store.NewMemory(size), &bytes, &flushes}, pager.RegionOptions{
				Durability: pager.Atomic,
				Journal:    pager.JournalOptions{Store: counting{store.NewMemory(4 * size), &bytes, &flushes}, Limit: 4 * size, Interval: -1},
				Writeback:  pager.Writeback{NoSteal: true},
			})
			bytes.Store(0) // what the journal's creation has written
			commits := max(1, 64/c.pages)
			for i := range commits {
				for k := range c.pages {
					if _, err := r.WriteAt([]byte{1}, (i*c.pages+k)*frame+7); err != nil {
						t.Fatal(err)
					}
				}
				before := flushes.Load()
				if err := r.Commit(context.Background()); err != nil {
					t.Fatal(err)
				}
				if n := flushes.Load() - before; n != 1 {
					t.Errorf("%d flushes in a commit", n)
				}
			}
			if err := r.Close(); err != nil { // the checkpoint
				t.Fatal(err)
			}
			per := float64(bytes.Load()) / float64(commits*c.pages*frame)
			t.Logf("%.3f bytes written per dirty byte", per)
			if per > c.most {
				t.Errorf("%.3f bytes written per dirty byte, more than %.1f", per, c.most)
			}
		})
	}
}

// direct writes n bytes in one sequential O_DIRECT write into a file that has
// them already, and flushes once: what the device takes for a commit.
type direct struct {
	f         *os.File
	buf       []byte
	off, size int64
}

// newDirect writes to the beginning of its file each time, or, advancing, where the
// write before it ended, as a journal does.
func newDirect(b *testing.B, dir string, n int, advancing bool) *direct {
	path, size := filepath.Join(dir, "direct"), int64(n)
	if advancing {
		path, size = filepath.Join(dir, "advancing"), (64<<20)/int64(n)*int64(n)
	}
	fileOf(b, path, size)
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		b.Skip("no O_DIRECT here: ", err)
	}
	b.Cleanup(func() { f.Close() })
	buf, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.Munmap(buf) })
	for i := range buf {
		buf[i] = byte(i)
	}
	d := &direct{f: f, buf: buf, size: size}
	d.write(b)
	return d
}

func (d *direct) write(b *testing.B) time.Duration {
	at := time.Now()
	if _, err := d.f.WriteAt(d.buf, d.off); err != nil {
		b.Fatal(err)
	}
	d.off = (d.off + int64(len(d.buf))) % d.size
	if err := unix.Fdatasync(int(d.f.Fd())); err != nil {
		b.Fatal(err)
	}
	return time.Since(at)
}

// benchRegion is an Atomic region over a file of this size.
func benchRegion(b *testing.B, dir string, size, budget int64) (*pager.Pager, *pager.Region) {
	b.Helper()
	path := fixture.FileIn(b, dir, size, 1)
	p := fixture.Pager(b, pager.Options{Budget: budget})
	return p, fixture.Map(b, p, fixture.OpenFile(b, path, store.FileOptions{}), pager.RegionOptions{
		Durability: pager.Atomic,
		Journal:    pager.JournalOptions{Limit: 256 << 20, Interval: -1},
		Writeback:  pager.Writeback{NoSteal: true},
	})
}

func median(d []time.Duration) float64 {
	slices.Sort(d)
	return float64(d[len(d)/2].Nanoseconds()) / 1e3
}

// BenchmarkCommit is a Commit of so many dirty pages, side by side or one in
// every so many, beside one sequential direct write of the same bytes and one
// fdatasync, and beside the floor of the journal's format: the same bytes and a
// record elsewhere in the file, with one call, and one fdatasync. All take turns.
// Every second Commit has a context that can end.
func BenchmarkCommit(b *testing.B) {
	for _, pages := range []int64{1, 64, 4096} {
		b.Run(fmt.Sprintf("pages=%d", pages), func(b *testing.B) { benchCommit(b, pages, 1) })
	}
	for _, every := range []int64{8, 32} {
		b.Run(fmt.Sprintf("pages=%d,every=%d", 4096/every, every), func(b *testing.B) { benchCommit(b, 4096/every, every) })
	}
}

func benchCommit(b *testing.B, pages, every int64) {
	dir := b.TempDir()
	_, r := benchRegion(b, dir, 4096*frame, 64<<20)
	d, s := newDirect(b, dir, int(pages*frame), false), newDirect(b, dir, int(pages*frame), true)
	f := newFloor(b, dir, d.buf)
	var commits [2][]time.Duration
	var times [3][]time.Duration
	yardsticks := [3]func(*testing.B) time.Duration{d.write, s.write, f.write}
	var cpu time.Duration
	may, cancel := context.WithCancel(context.Background())
	defer cancel()
	ctxs := [2]context.Context{context.Background(), may}
	dirty := func(i int) {
		for k := range pages {
			if _, err := r.WriteAt([]byte{byte(i)}, k*every*frame+8); err != nil {
				b.Fatal(err)
			}
		}
	}
	for i := range 4 { // the journal grows to what it needs
		dirty(i)
		if err := r.Commit(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		dirty(i)
		// Who comes after whom matters to the device.
		for k := range yardsticks {
			k = (k + i) % len(yardsticks)
			times[k] = append(times[k], yardsticks[k](b))
		}
		b.StartTimer()
		at, before := time.Now(), processCPU(b)
		if err := r.Commit(ctxs[i/2%2]); err != nil {
			b.Fatal(err)
		}
		commits[i/2%2] = append(commits[i/2%2], time.Since(at))
		cpu += processCPU(b) - before
	}
	if b.N < 4 {
		return
	}
	c, w, a, l := median(commits[0]), median(times[0]), median(times[1]), median(times[2])
	b.ReportMetric(c, "µs/commit")
	b.ReportMetric(median(commits[1])/w, "ctx-ratio")
	b.ReportMetric(w, "µs/direct")
	b.ReportMetric(a, "µs/seq")
	b.ReportMetric(l, "µs/floor")
	b.ReportMetric(c/w, "ratio")
	b.ReportMetric(c/a, "seq-ratio")
	b.ReportMetric(l/w, "floor-ratio")
	b.ReportMetric(float64(cpu.Nanoseconds())/1e3/float64(b.N)/float64(pages), "cpu-µs/page")
}

// floor is the least that a commit can be made of in this format: the images in
// one write, the record in another, at the same time, and a flush after both. As in
// a journal each goes where the one before it ended.
type floor struct {
	s             store.Store
	e             aio.Engine
	ops           []*aio.Op
	images        int64 // bytes of them
	next, records int64 // where the next images and the next record go
}

// The records of a floor are in the first MiB of its file; behind them is room for
// images, of so many bytes at least.
const (
	floorRecords = 1 << 20
	floorImages  = 64 << 20
)

func newFloor(b *testing.B, dir string, images []byte) *floor {
	below, err := aio.Open(aio.Options{Kind: aio.LinuxAIO})
	if err != nil {
		b.Skip(err)
	}
	record := (96 + 16*len(images)/frame + frame - 1) &^ (frame - 1)
	path := filepath.Join(dir, "floor")
	fileOf(b, path, floorRecords+floorImages+int64(len(images)))
	e, s := aio.InPlace(below), fixture.OpenFile(b, path, store.FileOptions{})
	b.Cleanup(func() { e.Close(); below.Close(); s.Close() })
	f := &floor{s: s, e: e, images: int64(len(images))}
	const most = 1 << 20 // of a transfer, as in a commit
	for off := 0; off < len(images); off += most {
		f.ops = append(f.ops, &aio.Op{Code: aio.Write, Buf: images[off:min(off+most, len(images))]})
	}
	f.ops = append(f.ops, &aio.Op{Code: aio.Write, Buf: images[:min(record, len(images))]})
	f.write(b)
	return f
}

func (f *floor) write(b *testing.B) time.Duration {
	last := len(f.ops) - 1
	off := floorRecords + f.next
	for _, op := range f.ops[:last] {
		op.Off = off
		off += int64(len(op.Buf))
	}
	f.ops[last].Off = f.records
	f.next = (f.next + f.images) % floorImages
	f.records = (f.records + int64(len(f.ops[last].Buf))) % floorRecords
	at := time.Now()
	runOps(b, f.s, f.e, f.ops)
	runOps(b, f.s, f.e, []*aio.Op{{Code: aio.Flush}})
	return time.Since(at)
}

// runOps starts ops and waits until all have ended.
func runOps(b *testing.B, s store.Store, e aio.Engine, ops []*aio.Op) {
	left := len(ops)
	for _, op := range ops {
		op.Done = func(op *aio.Op) {
			if left--; op.Err != nil {
				b.Error(op.Err)
			}
		}
	}
	s.Start(e, ops)
	for left > 0 {
		if e.Reap(64) == 0 {
			if err := e.Wait(context.Background()); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkGroupCommit has so many goroutines, each of which writes a page of
// its own and commits, again and again.
func BenchmarkGroupCommit(b *testing.B) {
	for _, n := range []int{1, 4, 16, 64} {
		b.Run(fmt.Sprintf("goroutines=%d", n), func(b *testing.B) {
			p, r := benchRegion(b, b.TempDir(), 4096*frame, 64<<20)
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			var wg sync.WaitGroup
			for g := range n {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						if _, err := r.WriteAt([]byte{1}, int64(g)*frame); err != nil {
							b.Error(err)
							return
						}
						if err := r.Commit(context.Background()); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
			b.ReportMetric(float64(p.Stats().Commits)/float64(b.N), "records/commit")
		})
	}
}

// BenchmarkRecovery is a Map of a file with so many MiB in its journal.
func BenchmarkRecovery(b *testing.B) {
	const size = 64 << 20
	dir := b.TempDir()
	path := fixture.FileIn(b, dir, size, 1)
	var spent time.Duration
	for b.Loop() {
		b.StopTimer()
		js, err := store.OpenFile(filepath.Join(dir, "journal"), store.FileOptions{Create: true, Size: 8 << 10})
		if err != nil {
			b.Fatal(err)
		}
		p, err := pager.New(pager.Options{Budget: 2 * size})
		if err != nil {
			b.Fatal(err)
		}
		o := pager.RegionOptions{Durability: pager.Atomic, Journal: pager.JournalOptions{Store: js, Limit: 256 << 20, Interval: -1}}
		r, err := p.Map(fixture.OpenFile(b, path, store.FileOptions{}), o)
		if err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, size)
		if _, err := r.WriteAt(buf, 0); err != nil {
			b.Fatal(err)
		}
		if err := r.Commit(context.Background()); err != nil {
			b.Fatal(err)
		}
		// The journal as a crash leaves it.
		copied := filepath.Join(dir, "copy")
		data, err := os.ReadFile(filepath.Join(dir, "journal"))
		if err == nil {
			err = os.WriteFile(copied, data, 0o600)
		}
		if err != nil {
			b.Fatal(err)
		}
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
		o.Journal.Store = fixture.OpenFile(b, copied, store.FileOptions{})
		s := fixture.OpenFile(b, path, store.FileOptions{})
		at := time.Now()
		b.StartTimer()
		r, err = p.Map(s, o)
		spent += time.Since(at)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
		p.Close()
		b.StartTimer()
	}
	b.ReportMetric(float64(spent.Microseconds())/1e3/float64(b.N)/(size>>20), "ms/MiB")
}

// BenchmarkSync is a Sync of an InPlace region of 1 GiB, all resident, with one
// page in so many dirty, beside the same writes and one flush through an engine
// of its own. (Of the denser ones 10,486 pages, as many as one in a hundred is.)
func BenchmarkSync(b *testing.B) {
	const size, budget = 1 << 30, 1<<30 + 64<<20
	dir := b.TempDir()
	path := fixture.FileIn(b, dir, size, 1)
	p := fixture.Pager(b, pager.Options{Budget: budget})
	r := fixture.Map(b, p, fixture.OpenFile(b, path, store.FileOptions{}), pager.RegionOptions{Writeback: pager.Writeback{NoSteal: true}})
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(buf)) {
		if _, err := r.ReadAt(buf, off); err != nil {
			b.Fatal(err)
		}
	}
	d := newDevice(b, fixture.FileIn(b, b.TempDir(), size, 1))
	for _, every := range []int64{100, 32, 8} {
		b.Run(fmt.Sprintf("every=%d", every), func(b *testing.B) { benchSync(b, r, d, every) })
	}
}

// BenchmarkSyncFew is a Sync of so few pages, 64 apart, of 64 MiB that are
// resident, beside the same writes and one flush.
func BenchmarkSyncFew(b *testing.B) {
	const size = 64 << 20
	for _, pages := range []int64{1, 16} {
		b.Run(fmt.Sprintf("pages=%d", pages), func(b *testing.B) {
			p := fixture.Pager(b, pager.Options{Budget: 2 * size})
			r := fixture.Map(b, p, fixture.OpenFile(b, fixture.FileIn(b, b.TempDir(), size, 1), store.FileOptions{}), pager.RegionOptions{Writeback: pager.Writeback{NoSteal: true}})
			if _, err := r.ReadAt(make([]byte, size), 0); err != nil {
				b.Fatal(err)
			}
			d := newDevice(b, fixture.FileIn(b, b.TempDir(), size, 1))
			var syncs, writes []time.Duration
			for i := int64(0); b.Loop(); i++ {
				b.StopTimer()
				var offs []int64
				for k := range pages {
					offs = append(offs, (k*64+i%64)*frame)
					if _, err := r.WriteAt([]byte{byte(i)}, offs[k]); err != nil {
						b.Fatal(err)
					}
				}
				writes = append(writes, d.write(b, offs))
				b.StartTimer()
				at := time.Now()
				if err := r.Sync(context.Background()); err != nil {
					b.Fatal(err)
				}
				syncs = append(syncs, time.Since(at))
			}
			s, w := median(syncs), median(writes)
			b.ReportMetric(s, "µs/sync")
			b.ReportMetric(w, "µs/device")
			b.ReportMetric(s/w, "ratio")
		})
	}
}

func benchSync(b *testing.B, r *pager.Region, d *device, every int64) {
	var syncs, writes []time.Duration
	var cpu time.Duration
	pages := 0
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		var offs []int64
		for off := int64(i*37) % every * frame; off < r.Len() && len(offs) < 10486; off += every * frame {
			offs = append(offs, off)
			if _, err := r.WriteAt([]byte{byte(i)}, off); err != nil {
				b.Fatal(err)
			}
		}
		writes = append(writes, d.write(b, offs))
		b.StartTimer()
		at, before := time.Now(), processCPU(b)
		if err := r.Sync(context.Background()); err != nil {
			b.Fatal(err)
		}
		syncs = append(syncs, time.Since(at))
		cpu += processCPU(b) - before
		pages += len(offs)
	}
	s, w := median(syncs), median(writes)
	b.ReportMetric(s, "µs/sync")
	b.ReportMetric(w, "µs/device")
	b.ReportMetric(s/w, "ratio")
	b.ReportMetric(float64(cpu.Nanoseconds())/1e3/float64(pages), "cpu-µs/page")
}

// processCPU is the processor time of the process.
func processCPU(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// device writes pages at depth, and flushes.
type device struct {
	s   store.Store
	e   aio.Engine
	buf []byte
}

func newDevice(b *testing.B, path string) *device {
	e, err := aio.Open(aio.Options{})
	if err != nil {
		b.Fatal(err)
	}
	s := fixture.OpenFile(b, path, store.FileOptions{})
	buf, err := unix.Mmap(-1, 0, frame, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { e.Close(); s.Close(); unix.Munmap(buf) })
	return &device{s, e, buf}
}

func (d *device) write(b *testing.B, offs []int64) time.Duration {
	ops := make([]*aio.Op, len(offs))
	for i, off := range offs {
		ops[i] = &aio.Op{Code: aio.Write, Off: off, Buf: d.buf}
	}
	at := time.Now()
	runOps(b, d.s, d.e, ops)
	runOps(b, d.s, d.e, []*aio.Op{{Code: aio.Flush}})
	return time.Since(at)
}

// fileOf makes a file of zeros of which the page cache has nothing: a direct write
// over cached pages would have to look for them and drop them itself.
func fileOf(b *testing.B, path string, size int64) {
	f, err := os.Create(path)
	if err == nil {
		defer f.Close()
		_, err = f.Write(make([]byte, size))
	}
	if err = errors.Join(err, f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)); err != nil {
		b.Fatal(err)
	}
}
