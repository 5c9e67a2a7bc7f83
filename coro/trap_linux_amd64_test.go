package coro

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// faultAddr runs fn with faults as panics and returns the Addr of the fault.
func faultAddr(fn func()) (addr uintptr, faulted bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			a, ok := r.(interface{ Addr() uintptr })
			if !ok {
				panic(r)
			}
			addr, faulted = a.Addr(), true
		}
	}()
	fn()
	return 0, false
}

func TestForeignFaultReachesGo(t *testing.T) {
	if err := Install(); err != nil {
		t.Fatal(err)
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(2 * miniPage); err != nil {
		t.Fatal(err)
	}
	m, err := syscall.Mmap(int(f.Fd()), 0, 2*miniPage, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(m)
	if err := f.Truncate(miniPage); err != nil {
		t.Fatal(err)
	}
	before := ReadStats()
	addr, faulted := faultAddr(func() { touch(m, miniPage+77) })
	if want := uintptr(unsafe.Pointer(&m[miniPage+77])); !faulted || addr != want {
		t.Fatalf("load beyond the end of a file: faulted %v at %#x, want %#x", faulted, addr, want)
	}
	var b [64]byte
	if addr, faulted = faultAddr(func() { CopyOut(unsafe.Pointer(&b), unsafe.Pointer(&m[miniPage]), 64) }); !faulted {
		t.Fatal("a foreign fault in CopyOut was swallowed")
	}
	if after := ReadStats(); after.Faults != before.Faults || after.Delivered != before.Delivered {
		t.Fatalf("foreign faults were counted: %+v", after)
	}
}

func TestSentSIGBUSKillsAsBefore(t *testing.T) {
	if os.Getenv("UFFDPAGER_TEST_CHILD") != t.Name() {
		out, err := child(t, 20*time.Second)
		if err == nil || !bytes.Contains(out, []byte("SIGBUS")) {
			t.Fatalf("a SIGBUS sent by kill(2): %v\n%s", err, out)
		}
		return
	}
	if err := Install(); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(os.Getpid(), syscall.SIGBUS)
	time.Sleep(10 * time.Second)
}

// everyday touches pages first, first+1, … of mem (all missing before) with
// code as programs have it, and returns how many accesses it made.
func everyday(mem []byte, first int) (n int, err error) {
	page := func(k int) (int, []byte) { o := (first + k) * miniPage; return o, mem[o : o+miniPage] }
	bad := func(what string) error { return fmt.Errorf("%s: wrong result", what) }

	o, b := page(0)
	if touch(mem, o+5) != want(o+5, 1)[0] {
		return n, bad("load")
	}
	n++
	o, b = page(1)
	heap := make([]byte, miniPage)
	copy(heap, b)
	if !bytes.Equal(heap, want(o, miniPage)) {
		return n, bad("copy")
	}
	n++
	o, b = page(2)
	if !bytes.Equal(b, want(o, miniPage)) {
		return n, bad("bytes.Equal")
	}
	n++
	o, b = page(3)
	if got := append(heap[:0:0], b[100:3000]...); !bytes.Equal(got, want(o+100, 2900)) {
		return n, bad("append")
	}
	n++
	o, b = page(4)
	m := map[string]int{string(want(o+8, 40)): 4}
	if m[unsafe.String(&b[8], 40)] != 4 {
		return n, bad("map lookup with a key in the page")
	}
	n++
	o, b = page(5)
	if sha256.Sum256(b) != sha256.Sum256(want(o, miniPage)) {
		return n, bad("sha256")
	}
	n++
	o, b = page(6)
	if crc32.ChecksumIEEE(b) != crc32.ChecksumIEEE(want(o, miniPage)) {
		return n, bad("crc32 IEEE")
	}
	n++
	o, b = page(7)
	tab := crc32.MakeTable(crc32.Castagnoli)
	if crc32.Checksum(b, tab) != crc32.Checksum(want(o, miniPage), tab) {
		return n, bad("crc32 Castagnoli")
	}
	n++
	o, b = page(8)
	if string(b) != string(want(o, miniPage)) {
		return n, bad("string()")
	}
	n++
	o, b = page(9)
	if v := reflect.ValueOf((*[64]uint64)(unsafe.Pointer(&b[0]))).Elem(); v.Index(9).Uint() != mix(uint64(o+72)) {
		return n, bad("reflect")
	}
	n++
	o, b = page(10)
	if got, w := fmt.Sprintf("%x", b[:64]), fmt.Sprintf("%x", want(o, 64)); got != w {
		return n, bad("fmt")
	}
	n++
	o, b = page(11)
	if v := *(*[32]uint64)(unsafe.Pointer(&b[8])); v[31] != mix(uint64(o+8+31*8)) {
		return n, bad("copy of an array")
	}
	n++
	o, b = page(12)
	if atomic.LoadUint64((*uint64)(unsafe.Pointer(&b[16]))) != mix(uint64(o+16)) {
		return n, bad("atomic load")
	}
	n++
	o, b = page(13)
	if atomic.AddUint64((*uint64)(unsafe.Pointer(&b[16])), 1) != mix(uint64(o+16))+1 {
		return n, bad("atomic add")
	}
	n++
	o, b = page(14)
	b[1] = 7
	if b[1] != 7 || b[2] != want(o+2, 1)[0] {
		return n, bad("store")
	}
	n++
	o, b = page(15)
	copy(b[10:], heap[:100])
	if !bytes.Equal(b[10:110], heap[:100]) || b[110] != want(o+110, 1)[0] {
		return n, bad("copy into the page")
	}
	n++
	o, b = page(16)
	clear(b[8:1000])
	if b[8] != 0 || b[999] != 0 || b[1000] != want(o+1000, 1)[0] {
		return n, bad("clear")
	}
	n++
	o, b = page(17)
	touch(mem, o) // resident and write-protected from here
	b[3]++
	if b[3] != want(o+3, 1)[0]+1 {
		return n, bad("store to a write-protected page")
	}
	n++
	o, b = page(18)
	if bytes.IndexByte(b, 0) != bytes.IndexByte(want(o, miniPage), 0) || bytes.Compare(b, want(o, miniPage)) != 0 || bytes.Count(b, []byte{1}) != bytes.Count(want(o, miniPage), []byte{1}) {
		return n, bad("bytealg")
	}
	n++
	o, b = page(19)
	words := slices.Clone(unsafe.Slice((*uint64)(unsafe.Pointer(&b[0])), miniPage/8))
	slices.Sort(words)
	if x, ok := slices.BinarySearch(words, mix(uint64(o))); !ok || words[x] != mix(uint64(o)) {
		return n, bad("slices")
	}
	n++
	return n, nil
}

const everydayPages = 20

// gcLoop collects as fast as it can until stop is called.
func gcLoop() (stop func()) {
	var done atomic.Bool
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for !done.Load() {
			runtime.GC()
		}
	}()
	return func() { done.Store(true); wg.Wait() }
}

// A thread that blocks in a fault holds its P, and the collector waits for it:
// only a server without a P gets it out.
func TestEverydayCodeOnMissingPages(t *testing.T) {
	for _, c := range []struct{ name, env string }{
		{"default", ""},
		{"inline", "UFFDPAGER_TEST_INLINE=1"},
		{"asyncpreemptoff", "GODEBUG=asyncpreemptoff=1"},
		{"gccheckmark", "GODEBUG=gccheckmark=1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !inChild(t, 60*time.Second, c.env) {
				return
			}
			mem := mini(t)
			for _, procs := range []int{1, 2, 8} {
				runtime.GOMAXPROCS(procs)
				stop := gcLoop()
				var wg sync.WaitGroup
				for g := range 8 {
					wg.Add(1)
					go func() {
						defer wg.Done()
						for round := range 5 {
							first := (g*5 + round) * everydayPages
							if n, err := everyday(mem, first); err != nil || n != everydayPages {
								t.Errorf("GOMAXPROCS %d: after %d accesses: %v", procs, n, err)
							}
						}
					}()
				}
				wg.Wait()
				stop()
				miniReset(0, 8*5*everydayPages)
			}
			if s := ReadStats(); s.Faults < 3*8*5*everydayPages {
				t.Errorf("only %d faults: the pages were not missing", s.Faults)
			}
		})
	}
}

// failures are the ways in which an access to a bad page may be made.
var failures = []struct {
	name string
	do   func(page []byte)
}{
	{"load", func(p []byte) { touch(p, 0) }},
	{"store", func(p []byte) { p[0] = 1 }},
	{"copy", func(p []byte) { copy(make([]byte, len(p)), p) }},
	{"copy into", func(p []byte) { copy(p, make([]byte, len(p))) }},
	{"bytes.Equal", func(p []byte) { bytes.Equal(p, make([]byte, len(p))) }},
	{"sha256", func(p []byte) { sha256.Sum256(p) }},
	{"crc32", func(p []byte) { crc32.ChecksumIEEE(p) }},
	{"string", func(p []byte) { _ = strings.ToUpper(string(p)) }},
	{"atomic", func(p []byte) { atomic.AddUint32((*uint32)(unsafe.Pointer(&p[0])), 1) }},
	{"reflect", func(p []byte) { reflect.Copy(reflect.ValueOf(make([]byte, len(p))), reflect.ValueOf(p)) }},
}

func testFailures(t *testing.T, mem []byte, errno uintptr) {
	for i, c := range failures {
		page := mem[i*miniPage : (i+1)*miniPage]
		mark := Seq()
		addr, faulted := faultAddr(func() { c.do(page) })
		if !faulted {
			t.Errorf("%s: no fault", c.name)
			continue
		}
		if addr < miniLo+uintptr(i)*miniPage || addr >= miniLo+uintptr(i+1)*miniPage {
			t.Errorf("%s: Addr %#x is not in the page", c.name, addr)
		}
		if a, e, ok := Delivered(CurrentG(), mark); !ok || a != addr || e != errno {
			t.Errorf("%s: the log has errno %#x at %#x (%v) for the goroutine, want %#x at %#x", c.name, e, a, ok, errno, addr)
		}
		if e, ok := DeliveredAt(addr); !ok || e != errno {
			t.Errorf("%s: the log has errno %#x (%v) for the address", c.name, e, ok)
		}
		if _, _, ok := Delivered(CurrentG(), Seq()); ok {
			t.Errorf("%s: the log finds a fault after its mark", c.name)
		}
		if _, _, ok := Delivered(1, mark); ok {
			t.Errorf("%s: the log finds a fault of a goroutine that had none", c.name)
		}
	}
}

func TestFailedPageIsAGoFaultWithAddress(t *testing.T) {
	mem := mini(t)
	for _, v := range []Verdict{Wait, Deliver} { // the server says EIO; Decide says EIO
		for i := range failures {
			bare.Store32(&miniState[i], miniFail)
		}
		bare.Store32(&miniMode, uint32(v))
		testFailures(t, mem, uintptr(syscall.EIO))
	}
	// The next access tries again.
	miniReset(0, len(failures))
	bare.Store32(&miniMode, uint32(Wait))
	if _, err := everyday(mem, 0); err != nil {
		t.Error(err)
	}
}

func TestFaultThatNobodyCatchesKills(t *testing.T) {
	if os.Getenv("UFFDPAGER_TEST_CHILD") != t.Name() {
		out, err := child(t, 20*time.Second)
		if bytes.Contains(out, []byte("--- SKIP")) {
			t.Skipf("%s", out)
		}
		if err == nil || !bytes.Contains(out, []byte("unexpected fault address")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	mem := mini(t)
	bare.Store32(&miniState[3], miniFail)
	touch(mem, 3*miniPage)
}

func TestPageThatNeedsGoIsDeliveredWhereNothingCanBeParked(t *testing.T) {
	mem := mini(t)
	for i := range failures {
		bare.Store32(&miniState[i], miniGo)
	}
	testFailures(t, mem, ErrnoCannotPark)
}

func TestFullRequestTableOnlyDelays(t *testing.T) {
	mem := mini(t)
	for w := range slotUsed {
		bare.Store64(&slotUsed[w], ^uint64(0))
	}
	done := make(chan error)
	go func() {
		_, err := everyday(mem, 0)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("it went on without a slot: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	bare.And64(&slotUsed[maxSlots/64-1], ^uint64(1<<63))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := bare.Load64(&slotUsed[maxSlots/64-1]); got != 1<<63-1 {
		t.Fatalf("the slot was not given back: %x", got)
	}
	for w := range slotUsed {
		bare.Store64(&slotUsed[w], 0)
	}
}

func TestNoSlotLeaksAndServersShareTheWork(t *testing.T) {
	mem := mini(t)
	if err := StartServers(3); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 32 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			runtime.LockOSThread()
			for i := range 100 {
				o := (g*100 + i) * miniPage
				if touch(mem, o) != want(o, 1)[0] {
					t.Errorf("page %d", g*100+i)
				}
			}
		}()
	}
	wg.Wait()
	for w := range slotUsed {
		if u, p := bare.Load64(&slotUsed[w]), bare.Load64(&slotPending[w]); u != 0 || p != 0 {
			t.Fatalf("slots in use with nobody waiting: %x %x", u, p)
		}
	}
}

func TestArenaTableRefusesNonsense(t *testing.T) {
	mini(t)
	ok := ArenaConfig{Lo: 1 << 20, Hi: 1<<20 + miniPage, Decide: miniDecide}
	for _, c := range []struct {
		name string
		edit func(c *ArenaConfig)
	}{
		{"no Decide", func(c *ArenaConfig) { c.Decide = nil }},
		{"empty", func(c *ArenaConfig) { c.Hi = c.Lo }},
		{"reversed", func(c *ArenaConfig) { c.Lo, c.Hi = c.Hi, c.Lo }},
		{"null", func(c *ArenaConfig) { c.Lo = 0 }},
		{"overlap", func(c *ArenaConfig) { c.Lo, c.Hi = miniLo-miniPage, miniLo+miniPage }},
	} {
		a := ok
		c.edit(&a)
		if err := AddArena(a); err == nil {
			t.Errorf("%s: accepted", c.name)
		}
	}
}

func TestModesAreSpelledOneWay(t *testing.T) {
	for m := Auto; m <= Require; m++ {
		if got, err := ParseMode(m.String()); err != nil || got != m {
			t.Errorf("%v: %v, %v", m, got, err)
		}
	}
	if _, err := ParseMode("in_place"); err == nil {
		t.Error("in_place was accepted")
	}
	if !errors.Is(ErrNotSupported, errors.ErrUnsupported) {
		t.Error("ErrNotSupported is not errors.ErrUnsupported")
	}
}

// Programs that start others, take profiles and change all threads' state go
// on doing so beside a thread that the runtime does not know.
func TestServerThreadIsNoBurden(t *testing.T) {
	if !inChild(t, 60*time.Second) {
		return
	}
	mem := mini(t)
	stop := gcLoop()
	defer stop()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 500 {
				o := (g*500 + i) * miniPage
				if sha256.Sum256(mem[o:o+miniPage]) != sha256.Sum256(want(o, miniPage)) {
					t.Errorf("page %d", g*500+i)
				}
			}
		}()
	}
	for range 5 {
		p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
		if err != nil {
			t.Fatal(err)
		}
		if s, err := p.Wait(); err != nil || !s.Success() {
			t.Fatalf("a child process: %v %v", s, err)
		}
	}
	const prSetDumpable = 4
	if _, _, e := syscall.AllThreadsSyscall(syscall.SYS_PRCTL, prSetDumpable, 1, 0); e != 0 && e != syscall.ENOTSUP { // ENOTSUP: with cgo
		t.Fatalf("AllThreadsSyscall: %v", e)
	}
	wg.Wait()
}

// What one fault costs without I/O (filling a page and UFFDIO_COPY included):
// parked in place, the thread blocked for a fault server, served inline,
// resolved by Decide, and as a panic that is recovered. Compare within a run.
func BenchmarkFault(b *testing.B) {
	mem := mini(b)
	active, _ := ParkStatus()
	a := &arenas[nArenas-1]
	for i := range arenas[:nArenas] {
		if arenas[i].lo == miniLo {
			a = &arenas[i]
		}
	}
	was := *a
	defer func() { *a = was }()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			ps := NextParked(nil)
			if len(ps) == 0 {
				return
			}
			for _, p := range ps {
				p.Resume(miniFill(&p.Fault))
			}
		}
	}()
	defer func() { WakeParked(); <-done }()
	for _, c := range []struct {
		name    string
		mode    Mode
		verdict Verdict
		inline  bool
	}{
		{"parked", InPlace, Wait, false},
		{"server", Block, Wait, false},
		{"inline", Block, Wait, true},
		{"decide", Block, Retry, false},
		{"panic", Restart, Wait, false},
	} {
		for _, access := range []string{"load", "copy"} {
			b.Run(c.name+"/"+access, func(b *testing.B) {
				if c.mode == InPlace && !active {
					b.Skip("parking in place is off")
				}
				bare.Store32(&miniMode, uint32(c.verdict))
				a.inline, a.mode = c.inline, c.mode
				var dst [256]byte
				for i := 0; b.Loop(); i++ {
					if i%miniPages == 0 {
						b.StopTimer()
						miniReset(0, miniPages)
						b.StartTimer()
					}
					o := i % miniPages * miniPage
					run := func() {
						if access == "load" {
							touch(mem, o)
						} else {
							copy(dst[:], mem[o:o+256])
						}
					}
					if c.mode != Restart {
						run()
					} else if addr, faulted := faultAddr(run); faulted {
						miniFill(&Fault{Addr: addr})
						run()
					}
				}
			})
		}
	}
}
