package subjectkeys

import (
	"fmt"
	"runtime"
)

// RingMemory fills a ring with n keys of n subjects. It returns the bytes of the heap
// before and after.
func RingMemory(n int) (before, after uint64) {
	before = heapBytes()
	r := newRing()
	for i := range n {
		r.put(heldKey{id: KeyID(i+1) * 0x9e3779b97f4a7c15, subject: Customer(fmt.Sprint("customer-", i)).hash()})
	}
	after = heapBytes()
	if r.len() != n {
		panic("keys are missing")
	}
	return before, after
}

func heapBytes() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
