package domain

import "unique"

// Shared returns the one copy in memory of a text that many aggregates have, such as
// the name of a restaurant in all of its orders.
func Shared[T ~string](text T) T { return T(unique.Make(string(text)).Value()) }

// Fitted returns list without spare capacity, which decoding leaves.
func Fitted[T any](list []T) []T {
	if cap(list) == len(list) {
		return list
	}
	return append(make([]T, 0, len(list)), list...)
}
