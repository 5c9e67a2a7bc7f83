package prefetch

// StrideOptions configure Stride. The zero value works.
type StrideOptions struct {
	ReadaheadOptions
	// MaxStride is the longest step that is looked for, in bytes; 0: 4 MiB.
	MaxStride int64
}

// Stride returns a policy that does all that [Readahead] does and also finds
// readers that go through the region with a fixed step, forward or backward,
// many at a time: a column of a row store, one field of large records, a matrix
// read across its rows.
//
// A miss belongs to such a reader when the three before it at the same distance
// are among the last 128 misses. From there on the steps ahead are treated as
// Readahead treats pages, with markers and all, except that at most 256 are
// read ahead: with pages that lie apart the number of reads under way is what
// counts, not their length. Who goes on by a step of two or three pages where a
// scan has ended is taken for that scan, all pages of it being read; of three
// until touches show it, for which access must not be raw. Looking for steps costs each random miss some
// tenths of a microsecond, which is why this is not the default.
func Stride(o StrideOptions) Policy {
	s := &stride{seq: newReadahead(o.ReadaheadOptions), maxBytes: o.MaxStride}
	if s.maxBytes <= 0 {
		s.maxBytes = 4 << 20
	}
	return s
}

// maxSteps is the largest window of a reader with a step.
const maxSteps = 256

const (
	// stepHistory is how many misses back the terms of a progression may lie.
	stepHistory = 128
	// stepEvidence is how many misses at equal distances make a stream; more
	// after streams that went nowhere. Three happen by chance too often.
	stepEvidence = 4
)

type stride struct {
	seq      *readahead
	maxBytes int64

	recent [stepHistory]int64 // a ring of the latest misses, as page+1; 0: none
	at     int                // where the next one goes
	// seen holds the same pages by hash, and what is left of older ones: it
	// is only ever asked about pages at a distance that recent supplied.
	seen [4 * stepHistory]int64
}

// Observe implements Policy.
func (s *stride) Observe(e Event, plan *Plan) {
	if s.seq.sequential(e, plan) || e.Kind != Miss {
		return
	}
	evidence := int64(stepEvidence + s.seq.doubt/8)
	if step := s.step(e.Page, plan.pages(s.maxBytes), evidence); step != 0 {
		_, window := s.seq.stake(plan)
		s.seq.begin(stream{
			base: e.Page - (evidence-1)*step, step: step,
			pos: evidence - 1, window: window,
		}, plan)
		return
	}
	s.recent[s.at] = e.Page + 1
	s.at = (s.at + 1) % stepHistory
	*s.bucket(e.Page) = e.Page + 1
}

// Learn implements Learner.
func (s *stride) Learn(f Feedback) { s.seq.Learn(f) }

// step returns the distance at which the misses before p lie, or 0. The latest
// misses are tried first: they give the step itself, not a multiple of it.
func (s *stride) step(p, longest, evidence int64) int64 {
	for i := range uint(stepHistory) {
		q := s.recent[(uint(s.at)-1-i)%stepHistory]
		if q == 0 {
			break
		}
		step := p - (q - 1)
		// One unsigned comparison: the sign of a random step is not to be
		// predicted.
		if step == 0 || uint64(step+longest) > uint64(2*longest) {
			continue
		}
		terms := int64(2)
		for terms < evidence && s.has(p-terms*step) {
			terms++
		}
		if terms == evidence {
			return step
		}
	}
	return 0
}

func (s *stride) has(p int64) bool { return p >= 0 && *s.bucket(p) == p+1 }

// bucket spreads pages by multiplication (Fibonacci hashing): pages in a
// progression do not meet in one bucket.
func (s *stride) bucket(p int64) *int64 {
	const shift = 64 - 9 // len(seen) = 1 << 9
	return &s.seen[uint64(p)*0x9e3779b97f4a7c15>>shift]
}
