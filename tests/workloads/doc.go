// Package workloads holds work that pagers are usually tried with in the field,
// rewritten from its descriptions: a micro-benchmark of page faults
// (fault_bench_test.go), a store made of many regions (segments_test.go). The
// others are where their checks are: churn in tests/model, exact counters in
// tests/counters, thousands of regions in tests/limits, and random reads beside a
// goroutine that computes in tests/mmapbench.
package workloads
