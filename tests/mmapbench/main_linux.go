// Command mmapbench reads random pages of a file larger than the budget, with a
// goroutine beside it that only computes, and writes what got done in each
// second as CSV, and as a plot: through the pager, and through mmap(2) for
// comparison. What it is to show is that nothing falls off a cliff once memory
// is full, and that the work beside goes on.
//
//	go run ./tests/mmapbench -for 30s -csv out.csv -svg out.svg
package main

import (
	"encoding/csv"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
	"github.com/uffdpager/uffdpager/prefetch"
)

// second is one line of the result.
type second struct {
	way      string
	at       int   // seconds since the way began
	reads    int64 // pages touched
	work     int64 // rounds of the goroutine that computes
	resident int64 // bytes, by the pager's count; 0 for mmap
}

type options struct {
	size, budget int64
	workers      int
	lasts        time.Duration
	dir          string
}

func main() {
	var o options
	flag.Int64Var(&o.size, "size", 1<<30, "bytes of the file")
	flag.Int64Var(&o.budget, "budget", 64<<20, "bytes the pager may use")
	flag.IntVar(&o.workers, "goroutines", 64, "that read")
	flag.DurationVar(&o.lasts, "for", 10*time.Second, "how long each way is measured")
	flag.StringVar(&o.dir, "dir", "", "where to make the file (default: the directory for temporary files)")
	out := flag.String("csv", "", "file for the CSV (default: standard output)")
	plot := flag.String("svg", "", "file for the plot")
	flag.Parse()
	if err := run(o, *out, *plot); err != nil {
		fmt.Fprintln(os.Stderr, "mmapbench:", err)
		os.Exit(1)
	}
}

func run(o options, out, plot string) error {
	dir, err := os.MkdirTemp(o.dir, "mmapbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "data")
	if err := makeFile(path, o.size); err != nil {
		return err
	}
	var all []second
	for _, way := range []struct {
		name string
		open func(string, options) (mem []byte, resident func() int64, end func() error, err error)
	}{{"pager", openPager}, {"mmap", openMmap}} {
		mem, resident, end, err := way.open(path, o)
		if err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
		list, err := measure(way.name, mem, resident, o)
		if e := end(); err == nil {
			err = e
		}
		if err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
		all = append(all, list...)
	}
	w := io.Writer(os.Stdout)
	if out != "" {
		f, err := os.Create(out)
		if err != nil {
			return err
		}
		defer f.Close()
		w = f
	}
	if err := writeCSV(w, all); err != nil {
		return err
	}
	if plot != "" {
		return os.WriteFile(plot, []byte(draw(all)), 0o644)
	}
	return nil
}

// makeFile writes the number of each page into its first bytes.
func makeFile(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(buf)) {
		for i := int64(0); i < int64(len(buf)); i += pager.FrameSize {
			buf[i] = mark((off + i) / pager.FrameSize)
		}
		if _, err := f.WriteAt(buf[:min(int64(len(buf)), size-off)], off); err != nil {
			return err
		}
	}
	return f.Sync()
}

func mark(page int64) byte { return byte(page*7 + page>>8 + 1) }

func openPager(path string, o options) ([]byte, func() int64, func() error, error) {
	p, err := pager.New(pager.Options{Budget: o.budget})
	if err != nil {
		return nil, nil, nil, err
	}
	s, err := store.OpenFile(path, store.FileOptions{ReadOnly: true})
	if err != nil {
		return nil, nil, nil, err
	}
	r, err := p.Map(s, pager.RegionOptions{Prefetch: prefetch.None()})
	if err != nil {
		return nil, nil, nil, err
	}
	if err := r.Raw(); err != nil {
		return nil, nil, nil, err
	}
	return r.Bytes(), func() int64 { return p.Stats().Resident }, p.Close, nil
}

func openMmap(path string, o options) ([]byte, func() int64, func() error, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, nil, err
	}
	defer f.Close()
	// Start cold, and without the kernel's read-ahead.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	mem, err := unix.Mmap(int(f.Fd()), 0, int(o.size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, nil, err
	}
	_ = unix.Madvise(mem, unix.MADV_RANDOM)
	return mem, func() int64 { return 0 }, func() error { return unix.Munmap(mem) }, nil
}

// measure reads at random for a while and counts by seconds.
func measure(way string, mem []byte, resident func() int64, o options) ([]second, error) {
	var reads, work, wrong atomic.Int64
	var stop atomic.Bool
	var wg sync.WaitGroup
	for i := range o.workers {
		wg.Go(func() {
			g := rand.New(rand.NewPCG(1, uint64(i)))
			for !stop.Load() {
				page := g.Int64N(int64(len(mem)) / pager.FrameSize)
				if mem[page*pager.FrameSize] != mark(page) {
					wrong.Add(1)
				}
				reads.Add(1)
			}
		})
	}
	wg.Go(func() {
		x := uint64(1)
		for !stop.Load() {
			for range 10000 {
				x = x*6364136223846793005 + 1
			}
			work.Add(1)
		}
		sink = x
	})
	var list []second
	lastReads, lastWork := int64(0), int64(0)
	for i := 1; i <= int(o.lasts/time.Second); i++ {
		time.Sleep(time.Second)
		r, w := reads.Load(), work.Load()
		list = append(list, second{way, i, r - lastReads, w - lastWork, resident()})
		lastReads, lastWork = r, w
	}
	stop.Store(true)
	wg.Wait()
	if n := wrong.Load(); n > 0 {
		return nil, fmt.Errorf("%d reads saw another page", n)
	}
	return list, nil
}

var sink uint64

func writeCSV(w io.Writer, all []second) error {
	c := csv.NewWriter(w)
	rows := [][]string{{"way", "second", "pages read", "work done", "resident bytes"}}
	for _, s := range all {
		rows = append(rows, []string{s.way, strconv.Itoa(s.at), fmt.Sprint(s.reads), fmt.Sprint(s.work), fmt.Sprint(s.resident)})
	}
	return c.WriteAll(rows)
}

// draw plots pages per second over seconds, a line for each way.
func draw(all []second) string {
	const w, h, left, top = 640, 320, 70, 30
	most, last := int64(1), 1
	for _, s := range all {
		most, last = max(most, s.reads), max(last, s.at)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`, w+2*left, h+3*top)
	fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%d" height="%d" fill="none" stroke="#888"/>`, left, top, w, h)
	fmt.Fprintf(&b, `<text x="4" y="%d">%d/s</text><text x="4" y="%d">0</text><text x="%d" y="%d">%d s</text>`, top+4, most, top+h, left+w-20, top+h+20, last)
	colours := map[string]string{"pager": "#06c", "mmap": "#c40"}
	lines := map[string][]string{}
	for _, s := range all {
		lines[s.way] = append(lines[s.way], fmt.Sprintf("%d,%d", left+w*s.at/last, int64(top+h)-h*s.reads/most))
	}
	for i, way := range []string{"pager", "mmap"} {
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="2" points="%s"/>`, colours[way], strings.Join(lines[way], " "))
		fmt.Fprintf(&b, `<text x="%d" y="%d" fill="%s">%s, pages read per second</text>`, left+10+i*220, top-8, colours[way], way)
	}
	return b.String() + "</svg>\n"
}
