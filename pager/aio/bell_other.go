//go:build !linux

package aio

// Bell is an eventfd for the completion of single ops. Only Linux has any.
type Bell struct{}
