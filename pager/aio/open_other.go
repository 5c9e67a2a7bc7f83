//go:build !linux

package aio

import "fmt"

// Open makes an engine. Only Linux has any.
func Open(o Options) (Engine, error) {
	if _, err := o.depth(o.Kind); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("aio: engine %v is %w", o.Kind, ErrNotSupported)
}

// Probe says whether this process can open the engine.
func Probe(kind Kind) error {
	_, err := Open(Options{Kind: kind})
	return err
}

// InPlace is an engine that carries out what is submitted where it is submitted.
// Only Linux has any.
func InPlace(below Engine) Engine { return below }
