package coro

import "errors"

// ErrNotSupported (Is errors.ErrUnsupported) is returned by what this system
// or this build cannot do.
var ErrNotSupported error = notSupported{}

type notSupported struct{}

func (notSupported) Error() string        { return "coro: not supported on this system" }
func (notSupported) Is(target error) bool { return target == errors.ErrUnsupported }

// ErrTooManyArenas is returned by AddArena when the table is full. Arenas are
// never removed: reuse them.
var ErrTooManyArenas = errors.New("coro: too many arenas")
