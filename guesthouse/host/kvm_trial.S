/* The guest that `probe_kvm.py` runs to learn whether KVM runs an ordinary 64-bit system here.
 *
 * It does what every kernel does in its first second, and says on port 0xE9 how far it came:
 *   A  entered by the firmware in 32-bit protected mode
 *   B  64-bit long mode with paging
 *   C  SSE2 arithmetic
 *   D  an exception was taken and returned from (int3, iretq)
 *   E  ring 3 was entered (iretq) and left (syscall)
 *   F  a hundred interrupts of the local APIC's timer woke it from hlt
 * Then it ends QEMU through isa-debug-exit (port 0xF4); a wrong turn writes "!" and ends otherwise.
 *
 * Loaded at 1 MiB by multiboot's flat-file header. The bytes in kvm_trial.py are made of this by:
 *   as --64 -o t.o kvm_trial.S && ld -Ttext 0x100000 --oformat binary -o t.bin t.o
 */
.set BASE, 0x100000
.set TABLES, 0x200000           /* PML4, PDPT, two page directories: 4 KiB each */
.set IDT, 0x204000
.set STACK, 0x20f000
.set USER_STACK, 0x20e000
.set APIC, 0xfee00000
.set OK, 0x2a                   /* QEMU's exit code is 2 * value + 1 */
.set BAD, 0x15

.text
.code32
.globl _start
_start:
header:
        .long 0x1badb002, 0x00010000, -(0x1badb002 + 0x00010000)
        .long header, BASE, 0, 0, entry

.macro say letter
        movb $\letter, %al
        outb %al, $0xe9
.endm

entry:
        cli
        cld
        movl $STACK, %esp
        say 'A'
        movb $0xff, %al         /* the old interrupt controllers stay silent */
        outb %al, $0x21
        outb %al, $0xa1
        movl $0x80000001, %eax
        cpuid
        testl $(1 << 29), %edx  /* long mode */
        jz bad32
        movl $TABLES, %edi      /* clear tables and IDT */
        xorl %eax, %eax
        movl $(0x5000 / 4), %ecx
        rep stosl
        movl $(TABLES + 0x1007), TABLES
        movl $(TABLES + 0x2007), TABLES + 0x1000
        movl $(TABLES + 0x3007), TABLES + 0x1018
        movl $0x87, %eax        /* 2 MiB pages: the first GiB … */
        movl $(TABLES + 0x2000), %edi
        movl $512, %ecx
1:      movl %eax, (%edi)
        addl $0x200000, %eax
        addl $8, %edi
        loop 1b
        movl $0xc0000087, %eax  /* … and the fourth, where the APIC is */
        movl $512, %ecx
2:      movl %eax, (%edi)
        addl $0x200000, %eax
        addl $8, %edi
        loop 2b
        movl %cr4, %eax
        orl $0x620, %eax        /* PAE, OSFXSR, OSXMMEXCPT */
        movl %eax, %cr4
        movl $TABLES, %eax
        movl %eax, %cr3
        movl $0xc0000080, %ecx  /* EFER: long mode, syscall */
        rdmsr
        orl $0x101, %eax
        wrmsr
        movl $0x80010003, %eax  /* PG, WP, MP, PE */
        movl %eax, %cr0
        lgdt gdt_pointer
        ljmp $0x08, $long_mode
bad32:
        say '!'
        movb $BAD, %al
        outb %al, $0xf4
3:      hlt
        jmp 3b

.code64
long_mode:
        movl $0x10, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        movl $STACK, %esp
        say 'B'

        movdqa numbers, %xmm0
        paddq numbers, %xmm0
        pxor %xmm1, %xmm1
        psubq numbers, %xmm1
        paddq %xmm1, %xmm0      /* n + n - n */
        movq %xmm0, %rax
        cmpq numbers, %rax
        jne bad
        say 'C'

        movl $256, %ecx         /* every vector is a wrong turn, save two */
        movl $IDT, %edi
        movl $bad, %eax
4:      call gate
        loop 4b
        movl $(IDT + 3 * 16), %edi
        movl $breakpoint, %eax
        call gate
        movl $(IDT + 0x40 * 16), %edi
        movl $tick, %eax
        call gate
        lidt idt_pointer
        xorl %ebx, %ebx
        int3
        cmpl $1, %ebx
        jne bad
        say 'D'

        movl $0xc0000081, %ecx  /* STAR: selectors of syscall */
        xorl %eax, %eax
        movl $0x00130008, %edx
        wrmsr
        movl $0xc0000082, %ecx  /* LSTAR */
        movl $from_user, %eax
        xorl %edx, %edx
        wrmsr
        pushq $0x1b             /* ss, rsp, rflags, cs, rip of ring 3 */
        pushq $USER_STACK
        pushq $2
        pushq $0x23
        pushq $user
        iretq
user:
        incl %ebx
        syscall
        jmp bad
from_user:
        movl $STACK, %esp
        cmpl $2, %ebx
        jne bad
        say 'E'

        movl $0x1b, %ecx        /* APIC_BASE: enabled */
        rdmsr
        orl $0x800, %eax
        wrmsr
        movl $APIC, %esi
        movl $0x1ff, 0xf0(%rsi) /* spurious vector, software enable */
        movl $0x3, 0x3e0(%rsi)  /* divide by 16 */
        movl $0x40, 0x320(%rsi) /* one shot */
        xorl %ebx, %ebx
5:      movl $2000, 0x380(%rsi)
        sti
        hlt
        cli
        cmpl $100, %ebx
        jb 5b
        say 'F'
        movb $OK, %al
        outb %al, $0xf4
        jmp stop

bad:
        say '!'
        movb $BAD, %al
        outb %al, $0xf4
stop:   hlt
        jmp stop

gate:                           /* rdi: the gate, moved on by 16; eax: the handler, below 4 GiB */
        movw %ax, (%rdi)
        movw $0x08, 2(%rdi)
        movw $0x8e00, 4(%rdi)
        movl %eax, %edx
        shrl $16, %edx
        movw %dx, 6(%rdi)
        addl $16, %edi
        ret

breakpoint:
        incl %ebx
        iretq

tick:
        incl %ebx
        movl $0, 0xb0(%rsi)     /* end of interrupt */
        iretq

.balign 16
numbers:
        .quad 0x0123456789abcdef, 0xfedcba9876543210
gdt:
        .quad 0
        .quad 0x00af9a000000ffff /* 0x08: ring 0 code, 64 bit */
        .quad 0x00cf92000000ffff /* 0x10: ring 0 data */
        .quad 0x00cff2000000ffff /* 0x18: ring 3 data */
        .quad 0x00affa000000ffff /* 0x20: ring 3 code, 64 bit */
gdt_end:
gdt_pointer:
        .word gdt_end - gdt - 1
        .quad gdt
idt_pointer:
        .word 0x0fff
        .quad IDT
