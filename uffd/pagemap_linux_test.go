package uffd

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func openPagemap(t testing.TB) *Pagemap {
	t.Helper()
	needs(t, FeaturePagemapScan)
	p, err := OpenPagemap()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// pagesOf turns runs into page numbers of the memory at addr.
func pagesOf(addr uintptr, runs []PageRun) (pages []uintptr) {
	for _, r := range runs {
		for a := uintptr(r.Start); a < uintptr(r.End); a += pageSize {
			pages = append(pages, (a-addr)/pageSize)
		}
	}
	return pages
}

func equal(a, b []uintptr) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestScanFindsWhatIsPresentRunByRun(t *testing.T) {
	p := openPagemap(t)
	addr := memory(t, 16)
	want := []uintptr{1, 2, 3, 7, 9, 10, 15}
	for _, i := range want {
		*at(addr + i*pageSize) = 1
	}
	for _, room := range []int{1, 2, 3, 4, 10} {
		s := Scan{Start: addr, End: addr + 16*pageSize, Mask: PagePresent, Return: PagePresent}
		var got []uintptr
		for calls := 0; s.Start < s.End; calls++ {
			if calls > 16 {
				t.Fatal("the scan does not get on")
			}
			runs := make([]PageRun, room)
			n, end, err := p.Scan(s, runs)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, pagesOf(addr, runs[:n])...)
			s.Start = end
		}
		if !equal(got, want) {
			t.Errorf("room for %d runs: present are %d, want %d", room, got, want)
		}
	}

	var runs [16]PageRun
	n, end, err := p.Scan(Scan{Start: addr, End: addr + 16*pageSize, Mask: PagePresent, Return: PagePresent, MaxPages: 4}, runs[:])
	if got := pagesOf(addr, runs[:n]); err != nil || !equal(got, want[:4]) || end >= addr+16*pageSize {
		t.Errorf("at most 4 pages: %d, end at page %d, %v", got, (end-addr)/pageSize, err)
	}
	n, _, err = p.Scan(Scan{Start: addr, End: addr + 4*pageSize, Inverted: PagePresent, Mask: PagePresent, Return: PagePresent}, runs[:])
	if got := pagesOf(addr, runs[:n]); err != nil || !equal(got, []uintptr{0}) {
		t.Errorf("the missing of the first four: %d, %v", got, err)
	}
}

func TestScanFindsWhatWasWritten(t *testing.T) {
	p := openPagemap(t)
	needs(t, FeatureWPAsync)
	u := open(t, APIWriteProtect|APIWPAsync)
	addr := memory(t, 8)
	fill(addr, 8, 1)
	if err := u.Register(addr, 8*pageSize, RegisterWP); err != nil {
		t.Fatal(err)
	}
	written := Scan{Start: addr, End: addr + 8*pageSize, Flags: ScanProtect | ScanCheckAsync, Mask: PageWritten, Return: PageWritten}
	var runs [8]PageRun
	for _, want := range [][]uintptr{{0, 1, 2, 3, 4, 5, 6, 7}, nil, {2, 3, 6}, {0}, nil} {
		if len(want) < 8 {
			for _, i := range want {
				*at(addr + i*pageSize) = 2
			}
		}
		n, _, err := p.Scan(written, runs[:])
		if got := pagesOf(addr, runs[:n]); err != nil || !equal(got, want) {
			t.Errorf("written are %d, %v; want %d", got, err, want)
		}
	}
}

func TestScanRefusesToProtectWhereWritesAreSeen(t *testing.T) {
	p := openPagemap(t)
	u := open(t, APIWriteProtect)
	addr := region(t, u, 1)
	s := Scan{Start: addr, End: addr + pageSize, Flags: ScanProtect | ScanCheckAsync, Mask: PageWritten}
	if _, _, err := p.Scan(s, nil); !errors.Is(err, unix.EPERM) {
		t.Errorf("%v, want EPERM", err)
	}
}
