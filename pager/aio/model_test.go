//go:build linux

package aio

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// Batches of transfers of any size and place, through every engine in turn,
// leave the file and the buffers as pread and pwrite on a plain slice would.
func TestModel(t *testing.T) {
	const most = 1 << 17
	type opened struct {
		name string
		e    Engine
	}
	var all []opened
	for _, k := range engines {
		for _, depth := range []int{1, 3, 64} {
			e, err := k.open(depth)
			if isUnsupported(err) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			here := InPlace(e)
			defer here.Close()
			all = append(all, opened{k.name, e}, opened{"in place, " + k.name, here})
		}
	}
	fds := map[bool]int{false: file(t, nil, false)}
	if fd, err := unix.Open(t.TempDir()+"/direct", unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_DIRECT, 0o600); err == nil {
		defer unix.Close(fd)
		fds[true] = fd
	}
	mem := buffer(t, most)

	rapid.Check(t, func(t *rapid.T) {
		direct := len(fds) == 2 && rapid.Bool().Draw(t, "direct")
		buffered := !direct && rapid.Bool().Draw(t, "buffered")
		fd, unit := fds[direct], 1
		if direct {
			unit = 4096
		}
		size := rapid.IntRange(0, most/4).Draw(t, "size")
		model := pattern(size, 14)
		if err := unix.Ftruncate(fd, 0); err != nil {
			t.Fatal(err)
		}
		seed := mem[:(size+unit-1)/unit*unit]
		clear(seed)
		copy(seed, model)
		if len(seed) > 0 {
			if _, err := unix.Pwrite(fd, seed, 0); err != nil {
				t.Fatal(err)
			}
			if err := unix.Ftruncate(fd, int64(size)); err != nil {
				t.Fatal(err)
			}
		}

		t.Repeat(map[string]func(*rapid.T){
			"read": func(t *rapid.T) {
				x := rapid.SampledFrom(all).Draw(t, "engine")
				var ops []*Op
				for room := most; room > 0 && len(ops) < 40; {
					n := rapid.IntRange(0, 9).Draw(t, "units") * unit
					if unit == 1 {
						n = rapid.IntRange(0, 20000).Draw(t, "bytes")
					}
					if n > room {
						break
					}
					room -= n
					off := rapid.IntRange(0, most/2/unit).Draw(t, "offset") * unit
					ops = append(ops, &Op{FD: fd, Off: int64(off), Buf: mem[most-room-n:][:n:n], Buffered: buffered})
					if rapid.IntRange(0, 5).Draw(t, "more") == 0 {
						break
					}
				}
				run(t, x.e, ops...)
				for _, op := range ops {
					want := model[min(len(model), int(op.Off)):min(len(model), int(op.Off)+len(op.Buf))]
					if op.Err != nil || !bytes.Equal(op.Buf[:op.N], want) {
						t.Fatalf("%s: read of %d at %d of %d: %d, %v", x.name, len(op.Buf), op.Off, len(model), op.N, op.Err)
					}
				}
			},
			// Disjoint ones, for nothing is promised of the order of others.
			"write": func(t *rapid.T) {
				x := rapid.SampledFrom(all).Draw(t, "engine")
				var ops []*Op
				for off := 0; off < most/2 && len(ops) < 40; {
					off += rapid.IntRange(0, 16384/unit).Draw(t, "gap") * unit
					n := rapid.IntRange(1, 20000/unit).Draw(t, "length") * unit
					if off+n > most/2 {
						break
					}
					buf := mem[off:][:n:n]
					copy(buf, pattern(n, rapid.Uint64().Draw(t, "bytes")))
					ops = append(ops, &Op{Code: Write, FD: fd, Off: int64(off), Buf: buf, Buffered: buffered})
					if end := off + n; end > len(model) {
						model = append(model, make([]byte, end-len(model))...)
					}
					copy(model[off:], buf)
					off += n
				}
				ops = append(ops, &Op{Code: Flush, FD: fd})
				run(t, x.e, ops...)
				for _, op := range ops {
					if op.Err != nil || op.N != len(op.Buf) {
						t.Fatalf("%s: %v of %d at %d: %d, %v", x.name, op.Code, len(op.Buf), op.Off, op.N, op.Err)
					}
				}
			},
			"": func(t *rapid.T) {
				var st unix.Stat_t
				if err := unix.Fstat(fd, &st); err != nil || st.Size != int64(len(model)) {
					t.Fatalf("the file has %d bytes, not %d (%v)", st.Size, len(model), err)
				}
			},
		})
	})
}
