package coro

import (
	"testing"

	"pgregory.net/rapid"
)

func TestRingIsAQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q ring[int]
		var model []int
		next := 0
		for _, push := range rapid.SliceOf(rapid.Bool()).Draw(t, "pushes") {
			if push || len(model) == 0 {
				next++
				q.push(next)
				model = append(model, next)
				continue
			}
			if got := q.pop(); got != model[0] {
				t.Fatalf("pop = %d, want %d", got, model[0])
			}
			model = model[1:]
		}
		if q.n != len(model) {
			t.Fatalf("holds %d, want %d", q.n, len(model))
		}
		for _, want := range model {
			if got := q.pop(); got != want {
				t.Fatalf("pop = %d, want %d", got, want)
			}
		}
	})
}
