package prefetch

import "testing"

// takenInTurn is what readers touch that take one chunk after the other of a
// file, each whatever comes next when it is done with its own.
func takenInTurn(readers, chunks, length int64) (accesses []int64) {
	at, left := make([]int64, readers), make([]int64, readers)
	for next, busy := int64(0), true; busy; {
		busy = false
		for i := range at {
			if left[i] == 0 && next < chunks {
				at[i], left[i] = next*length, length
				next++
			}
			if left[i] > 0 {
				accesses = append(accesses, at[i])
				at[i]++
				left[i]--
				busy = true
			}
		}
	}
	return accesses
}

// Where streams are short and many, what those that have ended were like decides
// how the next ones begin; and they leave their share of the room at once.
func TestReadaheadOfShortStreams(t *testing.T) {
	for _, c := range []struct {
		length int64   // of a chunk, in pages
		misses float64 // at most, for each chunk
		wasted float64 // at most, of what was read ahead
	}{
		{64, 5, 0.11},
		{256, 10, 0.02},
		{1024, 23, 0.06},
	} {
		for _, sees := range []bool{false, true} {
			chunks := 200_000 / c.length
			s := newSimulator(Readahead(ReadaheadOptions{}), 1<<20, 65536)
			s.sees = sees
			got := s.run(takenInTurn(64, chunks, c.length))
			misses, wasted := float64(got.misses)/float64(chunks), float64(got.unused)/float64(got.issued)
			t.Logf("chunks of %d, touches seen %v: %.1f misses and %.1f late of each, %.3f of %d wasted, %.0f µs", c.length, sees, misses, float64(got.late)/float64(chunks), wasted, got.issued, s.now)
			if misses > c.misses || wasted > c.wasted {
				t.Errorf("chunks of %d, touches seen %v: %.1f misses of each, %.3f wasted; want at most %v, %v", c.length, sees, misses, wasted, c.misses, c.wasted)
			}
		}
	}
}
