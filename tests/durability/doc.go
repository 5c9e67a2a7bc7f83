// Package durability kills processes and takes the power away, and looks at
// what is left. See docs/guarantees.md, "Writing".
package durability
