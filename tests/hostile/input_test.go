package hostile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/tests/internal/child"
	"github.com/uffdpager/uffdpager/tests/internal/fixture"
)

const (
	page   = pager.FrameSize
	nobody = 65534
)

func TestMain(m *testing.M) {
	code := m.Run()
	child.Cleanup()
	os.Exit(code)
}

// oops fails unless err is one of want. A nil in want is no error at all.
func oops(t *testing.T, what string, err error, want ...error) {
	t.Helper()
	for _, w := range want {
		if errors.Is(err, w) {
			if err != nil && strings.TrimSpace(err.Error()) == "" {
				t.Errorf("%s: an error without words", what)
			}
			return
		}
	}
	t.Errorf("%s: %v; want %v", what, err, want)
}

// some fails unless there is an error.
func some(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", what)
	}
}

func TestFilesThatCannotBeOpened(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	secret := filepath.Join(dir, "secret")
	for path, mode := range map[string]os.FileMode{empty: 0o600, secret: 0} {
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	round := func() {
		for _, o := range []store.FileOptions{{}, {ReadOnly: true}} {
			_, err := store.OpenFile(filepath.Join(dir, "missing"), o)
			oops(t, "a missing file", err, fs.ErrNotExist)
			_, err = store.OpenFile(dir, o)
			oops(t, "a directory", err, syscall.EISDIR, syscall.EINVAL)
			_, err = store.OpenFile("", o)
			some(t, "no name", err)
			_, err = store.OpenFile(empty, o)
			some(t, "an empty file", err)
			_, err = store.OpenFile("/dev/null", o)
			some(t, "a character device", err)
			if os.Getuid() != 0 {
				_, err = store.OpenFile(secret, o)
				oops(t, "a file without permission", err, fs.ErrPermission)
			}
		}
		_, err := store.NewFile(nil, store.FileOptions{})
		some(t, "no file", err)
	}
	round() // the runtime has its threads then
	before := fixture.Measure(t)
	for range 20 {
		round()
	}
	before.NoGrowth(t, 10)
}

// TestNoPermission is the part that root cannot show.
func TestNoPermission(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("shown by TestFilesThatCannotBeOpened")
	}
	if child.In(t) {
		return
	}
	res := child.Run(t, child.Options{UID: nobody, Args: []string{"-test.run=^TestFilesThatCannotBeOpened$"}})
	if res.Err != nil || !strings.Contains(res.Output, "--- PASS: TestFilesThatCannotBeOpened ") {
		t.Fatalf("%v\n%s", res.Err, res.Output)
	}
}

func TestOptionsThatCannotBe(t *testing.T) {
	if child.Isolate(t, child.Options{}) {
		return
	}
	// What the process needs once for all pagers is there with the first.
	first, err := pager.New(pager.Options{Budget: 32 * page})
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	before := fixture.Measure(t)
	for _, b := range []int64{1, page - 1, page, pager.MinBudget - 1, -1, math.MinInt64, math.MaxInt64, 1 << 60} {
		p, err := pager.New(pager.Options{Budget: b})
		if err == nil {
			_ = p.Close()
		}
		oops(t, "New with an impossible budget", err, pager.ErrBudget)
	}
	for what, o := range map[string]pager.Options{
		"a negative queue depth": {QueueDepth: -1},
		"an unknown engine":      {Engine: 99},
		"an unknown park mode":   {Park: 99},
		"a negative batch":       {EvictBatch: -1},
	} {
		p, err := pager.New(o)
		if err == nil {
			_ = p.Close()
		}
		some(t, what, err)
	}

	p := fixture.Pager(t, pager.Options{Budget: 32 * page})
	for _, b := range []int64{0, -1, 1, page, pager.MinBudget - 1, math.MaxInt64, math.MinInt64} {
		oops(t, "SetBudget to an impossible budget", p.SetBudget(b), pager.ErrBudget)
	}
	if b := p.Stats().Budget; b != 32*page {
		t.Errorf("the budget is %d after refused changes", b)
	}
	for what, o := range map[string]pager.RegionOptions{
		"a page of 1 byte":             {PageSize: 1},
		"a page of less than a frame":  {PageSize: 2048},
		"a page that is no power of 2": {PageSize: 3 * page},
		"a page that is too large":     {PageSize: 2 * pager.MaxPageSize},
		"a negative page":              {PageSize: -page},
		"a negative MaxSize":           {MaxSize: -1},
		"a MaxSize below the size":     {MaxSize: page},
		"a negative MinResident":       {MinResident: -1},
		"a negative MaxResident":       {MaxResident: -1},
		"min above max":                {MinResident: 8 * page, MaxResident: 4 * page},
		"an unknown durability":        {Durability: 99},
		"an unknown OnReadError":       {OnReadError: 99},
	} {
		r, err := p.Map(store.NewMemory(10*page), o)
		if err == nil {
			_ = r.Close()
		}
		some(t, "Map with "+what, err)
	}
	// Fewer frames of the page size than an instruction may need.
	_, err = p.Map(store.NewMemory(10*page), pager.RegionOptions{PageSize: 64 << 10})
	oops(t, "Map with too few frames", err, pager.ErrBudget)
	_, err = p.Map(nil, pager.RegionOptions{})
	some(t, "Map of no store", err)
	if n := p.Stats().Regions; n != 0 {
		t.Errorf("%d regions after refused maps", n)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	before.NoGrowth(t, 10)
}

// ranges that cannot be, in a region of 10 pages and 5 bytes.
var impossible = []pager.Range{
	{Off: -1, Len: 1}, {Off: math.MinInt64, Len: 1}, {Off: 0, Len: 10*page + 6}, {Off: 10*page + 5, Len: 1},
	{Off: 10*page + 6, Len: 0}, {Off: math.MaxInt64, Len: 1}, {Off: math.MaxInt64, Len: math.MaxInt64}, {Off: 1, Len: math.MaxInt64},
	{Off: 0, Len: -1}, {Off: 5, Len: math.MinInt64}, {Off: 9 * page, Len: 2 * page},
}

func TestRangesThatCannotBe(t *testing.T) {
	if child.Isolate(t, child.Options{}) {
		return
	}
	const size = 10*page + 5
	ctx := context.Background()
	writes := fixture.CanWrite(t)
	p := fixture.Pager(t, pager.Options{Budget: 64 * page})
	r := fixture.Map(t, p, fixture.Memory(t, size, 1), pager.RegionOptions{})
	for _, g := range impossible {
		_, err := r.Acquire(ctx, g.Off, g.Len)
		some(t, "Acquire", err)
		_, err = r.AcquireWrite(ctx, g.Off, g.Len)
		some(t, "AcquireWrite", err)
		pins := make([]pager.Pin, 2)
		some(t, "AcquireV", r.AcquireV(ctx, []pager.Range{{Off: 0, Len: 1}, g}, pins))
		if _, ok := r.TryAcquire(g.Off, g.Len); ok {
			t.Errorf("TryAcquire(%v) says yes", g)
		}
		_, err = r.LockEventfd(g.Off, g.Len, -1)
		some(t, "LockEventfd", err)
		some(t, "Advise", r.Advise(g.Off, g.Len, pager.Normal))
		r.Prefetch([]int64{g.Off}, g.Len) // does nothing, and says nothing
		if resident, dirty := r.Residency(g.Off, g.Len); resident < 0 || dirty < 0 || resident > 11*page {
			t.Errorf("Residency(%v) is %d, %d", g, resident, dirty)
		}
		if writes {
			some(t, "Discard", r.Discard(ctx, g.Off, g.Len))
			some(t, "SyncRange", r.SyncRange(ctx, g.Off, g.Len))
			_, err = r.SyncEventfd(g.Off, g.Len, -1)
			some(t, "SyncEventfd", err)
		}
	}
	some(t, "AcquireV with too few pins", r.AcquireV(ctx, make([]pager.Range, 2), make([]pager.Pin, 1)))
	_, err := r.LockEventfd(0, 1, 999_999)
	some(t, "LockEventfd with a descriptor that is none", err)
	some(t, "Advise of nothing known", r.Advise(0, 1, 99))

	// io.ReaderAt's own rules.
	for off, want := range map[int64]error{-1: nil, math.MinInt64: nil, size: io.EOF, size + 1: io.EOF, math.MaxInt64: io.EOF} {
		n, err := r.ReadAt(make([]byte, 3), off)
		if n != 0 || err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("ReadAt at %d: %d, %v; want 0, %v", off, n, err, want)
		}
	}
	if n, err := r.ReadAt(make([]byte, 8), size-5); n != 5 || !errors.Is(err, io.EOF) {
		t.Errorf("ReadAt across the end: %d, %v; want 5, EOF", n, err)
	}
	if n, err := r.ReadAt(nil, 0); n != 0 || err != nil {
		t.Errorf("ReadAt of nothing: %d, %v", n, err)
	}
	if writes {
		for _, off := range []int64{-1, math.MinInt64, size, size - 2, math.MaxInt64} {
			_, err := r.WriteAt([]byte("abc"), off)
			some(t, "WriteAt outside", err)
		}
		for _, n := range []int64{-1, size + 1, math.MaxInt64} {
			some(t, "Resize outside", r.Resize(ctx, n))
		}
	}
	buf := make([]byte, size)
	if _, err := r.ReadAt(buf[:size-2], 0); err != nil {
		t.Fatal(err)
	}
	if err := fixture.Check(buf[:size-2], 0, 1); err != nil {
		t.Error(err)
	}
	if n := p.Stats().Pinned; n != 0 {
		t.Errorf("%d bytes pinned after refusals", n)
	}
}

func TestReadOnlyRefusesWrites(t *testing.T) {
	if child.Isolate(t, child.Options{}) {
		return
	}
	fixture.NeedWrite(t)
	ctx := context.Background()
	p := fixture.Pager(t, pager.Options{Budget: 64 * page})
	for name, r := range map[string]*pager.Region{
		"region": fixture.Map(t, p, fixture.Memory(t, 10*page, 1), pager.RegionOptions{ReadOnly: true}),
		"store":  fixture.Map(t, p, fixture.OpenFile(t, fixture.File(t, 10*page, 1), store.FileOptions{ReadOnly: true}), pager.RegionOptions{}),
	} {
		_, err := r.WriteAt([]byte("x"), 5)
		oops(t, name+": WriteAt", err, pager.ErrReadOnly)
		_, err = r.AcquireWrite(ctx, 0, 1)
		oops(t, name+": AcquireWrite", err, pager.ErrReadOnly)
		oops(t, name+": Update", r.Update(ctx, func([]byte) error { return nil }), pager.ErrReadOnly)
		oops(t, name+": Discard", r.Discard(ctx, 0, page), pager.ErrReadOnly)
		oops(t, name+": Resize", r.Resize(ctx, page), pager.ErrReadOnly)
		err = pager.Guard(func() error { r.Bytes()[5] = 1; return nil })
		oops(t, name+": a store", err, pager.ErrReadOnly)
		err = pager.Guard(func() error { copy(r.Bytes()[page:], "resident or not"); return nil })
		oops(t, name+": copy", err, pager.ErrReadOnly)
		if err := fixture.Check(r.Bytes(), 0, 1); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		oops(t, name+": Sync", r.Sync(ctx), nil, pager.ErrReadOnly)
	}
}

func TestSecondOwner(t *testing.T) {
	if child.Isolate(t, child.Options{}) {
		return
	}
	p := fixture.Pager(t, pager.Options{Budget: 64 * page})
	s := fixture.Memory(t, 10*page, 1)
	r := fixture.Map(t, p, s, pager.RegionOptions{})
	_, err := p.Map(s, pager.RegionOptions{})
	oops(t, "the same store mapped twice", err, pager.ErrBusy)
	if _, err := r.ReadAt(make([]byte, 10), 0); err != nil {
		t.Errorf("the first owner: %v", err)
	}
	path := fixture.File(t, 10*page, 1)
	fixture.Map(t, p, fixture.OpenFile(t, path, store.FileOptions{}), pager.RegionOptions{})
	_, err = store.OpenFile(path, store.FileOptions{})
	oops(t, "a file opened for writing twice", err, store.ErrBusy)
	ro, err := store.OpenFile(path, store.FileOptions{ReadOnly: true})
	oops(t, "a reader beside a writer", err, nil)
	if err == nil {
		_ = ro.Close()
	}
}

// TestUseAfterClose: everything says ErrClosed, memory kept from before
// faults, and Close may be called again.
func TestUseAfterClose(t *testing.T) {
	if child.Isolate(t, child.Options{}) {
		return
	}
	ctx := context.Background()
	for _, whole := range []bool{false, true} {
		p, err := pager.New(pager.Options{Budget: 64 * page})
		if err != nil {
			t.Fatal(err)
		}
		r, err := p.Map(fixture.Memory(t, 10*page, 1), pager.RegionOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		fixture.NeedRaw(t, r)
		mem := r.Bytes()
		if err := fixture.Check(mem[:5*page], 0, 1); err != nil {
			t.Fatal(err)
		}
		l, err := r.LockEventfd(0, page, -1)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		l.Unlock()
		if whole {
			oops(t, "Pager.Close", p.Close(), nil)
		} else {
			oops(t, "Region.Close", r.Close(), nil)
		}
		_, err = r.ReadAt(make([]byte, 1), 0)
		oops(t, "ReadAt", err, pager.ErrClosed)
		_, err = r.WriteAt(make([]byte, 1), 0)
		oops(t, "WriteAt", err, pager.ErrClosed, pager.ErrReadOnly)
		_, err = r.Acquire(ctx, 0, 1)
		oops(t, "Acquire", err, pager.ErrClosed)
		oops(t, "AcquireV", r.AcquireV(ctx, []pager.Range{{Off: 0, Len: 1}}, make([]pager.Pin, 1)), pager.ErrClosed)
		if _, ok := r.TryAcquire(0, 1); ok {
			t.Error("TryAcquire says yes")
		}
		_, err = r.LockEventfd(0, 1, -1)
		oops(t, "LockEventfd", err, pager.ErrClosed)
		oops(t, "View", r.View(ctx, func([]byte) error { return nil }), pager.ErrClosed)
		oops(t, "Advise", r.Advise(0, 1, pager.WillNeed), pager.ErrClosed)
		oops(t, "Sync", r.Sync(ctx), pager.ErrClosed)
		r.Prefetch([]int64{0}, 1)
		r.Residency(0, 1)
		_ = r.Stats().String()
		_ = p.Stats().String()
		l.Unlock()
		// What was resident, and what was not.
		for _, off := range []int{0, 4*page + 1, 9 * page} {
			err := pager.Guard(func() error { return fmt.Errorf("the memory was there: %d", mem[off]) })
			oops(t, "a load from memory kept from before Close", err, pager.ErrClosed)
			err = pager.Guard(func() error { copy(make([]byte, 100), mem[off:]); return errors.New("the memory was there") })
			oops(t, "a copy from memory kept from before Close", err, pager.ErrClosed)
		}
		oops(t, "Region.Close again", r.Close(), nil, pager.ErrClosed)
		oops(t, "Pager.Close (again)", p.Close(), nil, pager.ErrClosed)
		oops(t, "Pager.Close again", p.Close(), nil, pager.ErrClosed)
		_, err = p.Map(store.NewMemory(page), pager.RegionOptions{})
		oops(t, "Map", err, pager.ErrClosed)
		oops(t, "SetBudget", p.SetBudget(32*page), pager.ErrClosed)
	}
}

// TestForeignFaults: what is no page of ours is Go's, as ever.
func TestForeignFaults(t *testing.T) {
	if child.Isolate(t, child.Options{}) {
		return
	}
	p := fixture.Pager(t, pager.Options{Budget: 64 * page})
	fixture.Map(t, p, fixture.Memory(t, page, 1), pager.RegionOptions{})
	caught := func(f func()) (v any) {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() { v = recover() }()
		f()
		return nil
	}
	var null *int
	v := caught(func() { *null = 1 })
	if v == nil {
		t.Error("a nil pointer was written")
	}
	if _, ours := pager.FaultOf(v); ours {
		t.Error("a nil pointer is said to be a page of ours")
	}
	if _, ours := pager.FaultOf(nil); ours {
		t.Error("nothing is said to be a page of ours")
	}
	if _, ours := pager.FaultOf("a panic of somebody's"); ours {
		t.Error("a string is said to be a page of ours")
	}
	// Guard is for pages: other panics go through.
	v = caught(func() { _ = pager.Guard(func() error { panic("a panic of somebody's") }) })
	if v != "a panic of somebody's" {
		t.Errorf("Guard made %v of a panic", v)
	}
	own := errors.New("own")
	oops(t, "Guard", pager.Guard(func() error { return own }), own)
}

// TestContextsEnd: nothing outlasts its context, though the device does.
func TestContextsEnd(t *testing.T) {
	if child.Isolate(t, child.Options{}) {
		return
	}
	p := fixture.Pager(t, pager.Options{Budget: 64 * page})
	s := store.NewFaulty(fixture.Memory(t, 100*page, 1), store.FaultyOptions{})
	r := fixture.Map(t, p, s, pager.RegionOptions{})
	s.Hold(store.OnRead)
	t.Cleanup(s.Release)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err := r.Acquire(ctx, 0, 1)
	oops(t, "Acquire", err, context.DeadlineExceeded)
	oops(t, "AcquireV", r.AcquireV(ctx, []pager.Range{{Off: 0, Len: 1}, {Off: 9 * page, Len: 1}}, make([]pager.Pin, 2)), context.DeadlineExceeded)
	l, err := r.LockEventfd(20*page, page, -1)
	if err != nil {
		t.Fatal(err)
	}
	oops(t, "Lock.Wait", l.Wait(ctx), context.DeadlineExceeded)
	l.Unlock()
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = r.Acquire(gone, 50*page, 1)
	oops(t, "Acquire with a context that has ended", err, context.Canceled)
	s.Release()
	fixture.Eventually(t, "nothing is pinned", func() bool { return p.Stats().Pinned == 0 })
	b := make([]byte, 100*page)
	if _, err := r.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := fixture.Check(b, 0, 1); err != nil {
		t.Error(err)
	}
}
