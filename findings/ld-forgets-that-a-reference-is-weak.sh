#!/usr/bin/env bash
# GNU ld and objcopy: a weak reference of code that was dropped becomes a strong one.
#
# One would guess: `ld -r --gc-sections` keeps of an object what the wanted functions need, and what
# the rest referred to is gone with it; if an undefined symbol stays, it is what it was.
# What happens (binutils 2.40): a weak reference of a section that was dropped stays in the symbol
# table, undefined and LOCAL, which no undefined symbol should be. A program with the object links.
# But `objcopy --keep-global-symbol`, which hides all but the named symbols, makes that one GLOBAL
# and undefined, and no longer weak. The object alone still links, since nothing in it refers to the
# symbol; beside another object with a weak reference to the same name, the program does not: the
# linker wants a definition for the other one's.
#
# Libraries meet this that are made one object to hide what is inside, and whose language's run time
# refers weakly to functions of newer C libraries, as Rust's does (pidfd_spawnp of glibc 2.39).
# `objcopy --strip-unneeded-symbol` with the names of those symbols helps.
#
# Takes nothing but gcc and the binutils of the machine, whose version it prints; it fails where they
# behave otherwise.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
ld --version | sed -n 1p

cat >library.c <<'EOF'
extern int newer(void) __attribute__((weak));
int unused(void) { return newer ? newer() : 0; }
int wanted(void) { return 1; }
EOF
cat >program.c <<'EOF'
extern int newer(void) __attribute__((weak));
int wanted(void);
int main(void) { return newer ? newer() : wanted() - 1; }
EOF
gcc -O1 -ffunction-sections -c library.c program.c
ld -r --gc-sections --require-defined=wanted -o linked.o library.o
objcopy --keep-global-symbol=wanted linked.o hidden.o
objcopy --keep-global-symbol=wanted --strip-unneeded-symbol=newer linked.o stripped.o

reference() { # how the object refers to the function
    readelf --symbols --wide "$1" | awk '$8 == "newer" { print $5, $7 }'
}
links() { # whether a program with the object does
    if gcc -o program program.o "$1" 2>/dev/null && ./program; then echo links; else echo "does not link"; fi
}
found=$(for object in library linked hidden stripped; do
    echo "$object.o: $(reference $object.o); a program with it $(links $object.o)"
done)
echo "$found"

expected='library.o: WEAK UND; a program with it links
linked.o: LOCAL UND; a program with it links
hidden.o: GLOBAL UND; a program with it does not link
stripped.o: ; a program with it links'
if [ "$found" != "$expected" ]; then
    echo 'not as described'
    exit 1
fi
echo 'as described'
