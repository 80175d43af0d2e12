// Package system holds the integration tests of the whole product: real processes, real machines, killed and
// led astray. There is nothing in it to import.
package system
