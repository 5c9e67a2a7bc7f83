//go:build !linux

package coro

import (
	"context"
	"errors"
	"testing"
)

func TestWithoutEventfdsNothingWaits(t *testing.T) {
	if _, err := Await(context.Background(), 0); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Await = %v", err)
	}
	loop := NewLoop()
	loop.Go(func(*Task) error { t.Error("a coroutine has run"); return nil })
	if err := loop.Run(context.Background()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Run = %v", err)
	}
	if err := loop.Post(func() {}); err != ErrLoopClosed {
		t.Errorf("Post = %v", err)
	}
}
