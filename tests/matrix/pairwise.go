package main

import (
	"slices"
	"strings"
)

// dimension is something in which cells differ.
type dimension struct {
	name   string
	values []string
}

// cell has a value for each dimension.
type cell map[string]string

// String names what is not usual about a cell.
func (c cell) String() string {
	var parts []string
	for _, d := range dimensions {
		if v := c[d.name]; v != d.values[0] {
			parts = append(parts, d.name+"="+v)
		}
	}
	if parts == nil {
		return "all as usual"
	}
	return strings.Join(parts, " ")
}

// pair is two values that meet in a cell.
type pair struct{ d1, v1, d2, v2 string }

// pairs calls fn for every pair of values of a cell.
func (c cell) pairs(dims []dimension, fn func(pair)) {
	for i, a := range dims {
		for _, b := range dims[i+1:] {
			if x, ok := c[a.name]; ok {
				if y, ok := c[b.name]; ok {
					fn(pair{a.name, x, b.name, y})
				}
			}
		}
	}
}

// pairwise returns few cells in which every pair of values meets that can meet
// in an allowed cell. The first one has all the first values.
func pairwise(dims []dimension, allowed func(cell) bool) []cell {
	missing := map[pair]bool{}
	var order []pair // for the same result every time
	for i, a := range dims {
		for _, b := range dims[i+1:] {
			for _, x := range a.values {
				for _, y := range b.values {
					p := pair{a.name, x, b.name, y}
					if possible(dims, allowed, p) {
						missing[p] = true
						order = append(order, p)
					}
				}
			}
		}
	}
	var cells []cell
	add := func(c cell) {
		c.pairs(dims, func(p pair) { delete(missing, p) })
		cells = append(cells, c)
	}
	usual := cell{}
	for _, d := range dims {
		usual[d.name] = d.values[0]
	}
	if allowed(usual) {
		add(usual)
	}
	for len(missing) > 0 {
		i := slices.IndexFunc(order, func(p pair) bool { return missing[p] })
		seed := order[i]
		order = order[i:]
		c := cell{seed.d1: seed.v1, seed.d2: seed.v2}
		complete(dims, allowed, c, func(c cell) (n int) {
			c.pairs(dims, func(p pair) {
				if missing[p] {
					n++
				}
			})
			return n
		})
		add(c)
	}
	return cells
}

// possible: some allowed cell has the pair.
func possible(dims []dimension, allowed func(cell) bool, p pair) bool {
	c := cell{p.d1: p.v1, p.d2: p.v2}
	return complete(dims, allowed, c, func(cell) int { return 0 })
}

// complete gives c a value for every dimension, each time the one of most worth
// with which an allowed cell can still be made, and says whether there is one.
func complete(dims []dimension, allowed func(cell) bool, c cell, worth func(cell) int) bool {
	i := slices.IndexFunc(dims, func(d dimension) bool { _, ok := c[d.name]; return !ok })
	if i < 0 {
		return allowed(c)
	}
	d := dims[i]
	values := slices.Clone(d.values)
	score := map[string]int{}
	for _, v := range values {
		c[d.name] = v
		score[v] = worth(c)
	}
	slices.SortStableFunc(values, func(a, b string) int { return score[b] - score[a] })
	for _, v := range values {
		c[d.name] = v
		if complete(dims, allowed, c, worth) {
			return true
		}
	}
	delete(c, d.name)
	return false
}
